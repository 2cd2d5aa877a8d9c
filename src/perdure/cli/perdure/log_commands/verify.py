"""perdure log verify"""

from __future__ import annotations

import argparse

NAME = "verify"
HELP = "Recompute the hash chain of a run's log, or of an exported one"
GROUP = "Runs"
DESCRIPTION = "Of a file nothing else is needed: no server, and no database."


def configure(parser: argparse.ArgumentParser) -> None:
    one = parser.add_mutually_exclusive_group(required=True)
    one.add_argument("run_id", metavar="RUN", nargs="?", help="id, unique prefix of it, or name")
    one.add_argument("--file", metavar="FILE", help="an exported log; -: stdin")
    parser.add_argument("--json", action="store_true", help="as one JSON object")


def run(options: argparse.Namespace) -> int:
    import json

    from perdure.cli.perdure import _logfile, _progress

    if options.file is not None:
        from perdure.formats import logfile

        found = logfile.verify(_progress.counted(_logfile.lines(options.file), "read"))._asdict()
    else:
        from pathlib import Path

        from perdure.client.server import ServerClient
        from perdure.errors import NotFound

        try:
            found = ServerClient().verify(options.run_id)
        except NotFound as error:
            if not Path(options.run_id).is_file():
                raise
            raise NotFound(error.message, hint=f"For the file: perdure log verify --file {options.run_id}") from error
    if options.json:
        print(json.dumps(found))
    else:
        counted = (
            ("entry", "entries", "entries"),
            ("branch", "branches", "branches"),
            ("large value", "large values", "blobs"),
        )
        print(
            "verified: " + ", ".join(f"{found[key]} {one if found[key] == 1 else many}" for one, many, key in counted)
        )
    return 0
