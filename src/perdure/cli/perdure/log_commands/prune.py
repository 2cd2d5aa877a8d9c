"""perdure log prune"""

from __future__ import annotations

import argparse

NAME = "prune"
HELP = "Drop the logs of runs that have ended"
GROUP = "Runs"
DESCRIPTION = (
    "What a run returned stays, and so does its line in 'perdure runs'; its entries go. A run that has not ended, "
    "whose sandbox is still there, or whose entries a fork shares is left. With --older-than, large values go too, "
    "once nothing has referred to them since the prune before."
)


def configure(parser: argparse.ArgumentParser) -> None:
    one = parser.add_mutually_exclusive_group(required=True)
    one.add_argument("run_id", metavar="RUN", nargs="?", help="id, unique prefix of it, or name")
    one.add_argument("--older-than", metavar="TIME", help="all that ended so long ago: 30d, 12h, 90m, 45s")
    parser.add_argument("--dry-run", action="store_true", help="with --older-than: only say which")
    parser.add_argument("--json", action="store_true", help="as one JSON object")


def run(options: argparse.Namespace) -> int:
    import json

    from perdure.cli.perdure import _words
    from perdure.client.server import ServerClient
    from perdure.errors import InvalidValue

    server = ServerClient()
    if options.run_id is not None:
        if options.dry_run:
            raise InvalidValue("--dry-run is for --older-than")
        server.prune(options.run_id)
        return 0
    found = server.prune_older(_seconds(options.older_than), dry_run=options.dry_run)
    if options.json:
        print(json.dumps(found))
        return 0
    for run_id in found["runs"]:
        print(run_id)
    if swept := found["swept"]:
        freed = f"{swept['blobs']} large values removed, {_words.size(swept['stored_bytes'])}"
        print(f"{len(found['runs'])} logs dropped; {freed}; {swept['next_blobs']} go next time")
    return 0


def _seconds(text: str) -> float:
    from perdure.errors import InvalidValue

    number, unit = text[:-1], {"s": 1, "m": 60, "h": 3600, "d": 86400}.get(text[-1:])
    if unit is None or not number.isascii() or not number.isdecimal():
        raise InvalidValue(f"--older-than {text!r} is no time", hint="for example 30d, 12h, 90m or 45s")
    return float(int(number) * unit)
