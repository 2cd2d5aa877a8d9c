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
    from perdure.cli.fcrun._node import each, node
    from perdure.model import SnapshotInfo

    def show(ref: str, snapshot: SnapshotInfo) -> None:
        if options.format:
            print(json.dumps(msgspec.to_builtins(snapshot)), flush=True)
            return
        print(ref, flush=True)
        if sys.stderr.isatty():
            sys.stderr.write(f"stored {size(snapshot.stored_bytes)} in {snapshot.total_s:.2f} s\n")

    with node() as client:
        return each(options.sandboxes, client.suspend, show)
