"""fcrun checkpoint"""

from __future__ import annotations

import argparse
import json
import sys

NAME = "checkpoint"
HELP = "Take a snapshot of sandboxes that run on: to go back to it (resume --snapshot), or to fork from it"
GROUP = "Snapshots"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", default="", choices=("json",), help="print what was stored, as JSON")
    parser.add_argument("sandboxes", nargs="+", metavar="SANDBOX")


def run(options: argparse.Namespace) -> int:
    import msgspec

    from perdure.cli.fcrun._format import size
    from perdure.cli.fcrun._node import each, node
    from perdure.model import SnapshotInfo

    def show(_: str, snapshot: SnapshotInfo) -> None:
        if options.format:
            print(json.dumps(msgspec.to_builtins(snapshot)), flush=True)
            return
        print(snapshot.digest, flush=True)
        if sys.stderr.isatty():
            stored, total_s, pause_s = size(snapshot.stored_bytes), snapshot.total_s, snapshot.pause_s
            sys.stderr.write(f"stored {stored} in {total_s:.2f} s; it stood still for {pause_s:.3f} s\n")

    with node() as client:
        return each(options.sandboxes, client.checkpoint, show)
