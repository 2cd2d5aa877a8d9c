"""fcrun suspend"""

from __future__ import annotations

import argparse
import json
import sys

NAME = "suspend"
HELP = "Put sandboxes to sleep on disk: memory, processes and files are kept, nothing runs"
GROUP = "Common commands"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", default="", choices=("json",), help="print what was stored, as JSON")
    parser.add_argument("sandboxes", nargs="+", metavar="SANDBOX")


def run(options: argparse.Namespace) -> int:
    import msgspec

    from perdure.cli.fcrun._format import size
    from perdure.cli.fcrun._node import FAILED, node
    from perdure.errors import PerdureError

    status = 0
    with node() as client:
        for ref in options.sandboxes:
            try:
                snapshot = client.suspend(ref)
            except PerdureError as error:
                sys.stderr.write(f"fcrun: {error}\n")
                status = FAILED
                continue
            if options.format:
                print(json.dumps(msgspec.to_builtins(snapshot)), flush=True)
                continue
            print(ref, flush=True)
            if sys.stderr.isatty():
                stored = size(snapshot.stored_bytes)
                sys.stderr.write(f"stored {stored} in {snapshot.total_s:.2f} s\n")
    return status
