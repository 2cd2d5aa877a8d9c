"""fcrun snapshot compact"""

from __future__ import annotations

import argparse
import json
import sys

NAME = "compact"
HELP = "Rewrite snapshots in one layer each, in the order in which a restore touches their blocks"
GROUP = "Snapshots"
DESCRIPTION = (
    f"{HELP}. The new snapshot takes the place of the old one, whose digests it goes on answering to. Its sandbox must "
    "not run meanwhile. Layers that other snapshots need stay. What is due (see explain) is also compacted by itself, "
    "while nobody needs it; PERDURE_COMPACTION=off in the node's environment turns that off."
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", default="", choices=("json",), help="print before and after, as JSON")
    parser.add_argument("-q", "--quiet", action="store_true", help="only the new digests")
    parser.add_argument("snapshots", nargs="+", metavar="SNAPSHOT")


def run(options: argparse.Namespace) -> int:
    import msgspec

    from perdure.cli.fcrun._format import digest, size
    from perdure.cli.fcrun._node import FAILED, node
    from perdure.errors import PerdureError

    status = 0
    with node() as client:
        for ref in options.snapshots:
            try:
                done = client.store.compact(ref)
            except PerdureError as error:
                sys.stderr.write(f"fcrun: {error}\n")
                status = FAILED
                continue
            if options.format:
                print(json.dumps(msgspec.to_builtins(done)), flush=True)
                continue
            print(digest(done.after.digest), flush=True)
            if options.quiet:
                continue
            if done.after.digest == done.before.digest:
                print("  it was compact already")
                continue
            before, after = done.before, done.after
            layers = f"{before.memory_layers}+{before.disk_layers} layers"
            sizes = f"{size(before.total_bytes)} -> {size(after.total_bytes)}"
            print(f"  {layers}, {sizes}; freed {size(done.freed_bytes)}", flush=True)
    return status
