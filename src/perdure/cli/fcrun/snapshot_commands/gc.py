"""fcrun snapshot gc"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from perdure.cli.fcrun import _format

if TYPE_CHECKING:
    from perdure.reports import Swept

NAME = "gc"
HELP = "Delete what no sandbox and no tag needs: snapshots, layers, working sets, old templates"
GROUP = "The store"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-n", "--dry-run", action="store_true", help="only say what would be deleted")
    parser.add_argument("--format", default="text", choices=("text", "json"))
    parser.add_argument("-q", "--quiet", action="store_true", help="only the digests of snapshots")


def run(options: argparse.Namespace) -> int:
    import msgspec

    from perdure.cli.fcrun._node import node

    with node() as client:
        swept = client.store.collect(dry_run=options.dry_run)
    for digest, problem in swept.unreadable.items():
        sys.stderr.write(
            f"fcrun: snapshot {_format.digest(digest)} does not read, so nothing that it might need is deleted: "
            f"{problem}\n  Forget it: fcrun snapshot rm --force {_format.digest(digest)}\n"
        )
    if options.format == "json":
        print(json.dumps(msgspec.to_builtins(swept)))
        return 0
    for digest in swept.forgotten:
        print(_format.digest(digest))
    if not options.quiet:
        _report(swept, dry_run=options.dry_run)
    return 0


def _report(swept: Swept, *, dry_run: bool) -> None:
    for name in swept.templates:
        print(f"template {name}")
    for digest in swept.leased:
        print(f"{_format.digest(digest)} is being read: the next time")
    counts = {
        "snapshot": len(swept.forgotten),
        "blob": swept.blobs,
        "working set": swept.working_sets,
        "unfinished file": swept.left_over,
        "template": len(swept.templates),
    }
    listed = ", ".join(_format.count(number, what) for what, number in counts.items() if number)
    done = "Would delete" if dry_run else "Deleted"
    freed = _format.size(swept.blob_bytes + swept.template_bytes)
    print(f"{done}: {listed or 'nothing'}. {'It would free' if dry_run else 'Freed'} {freed}.")
