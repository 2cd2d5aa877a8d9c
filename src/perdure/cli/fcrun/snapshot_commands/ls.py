"""fcrun snapshot ls"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from perdure.cli.fcrun import _format

if TYPE_CHECKING:
    from perdure.reports import SnapshotSummary

NAME = "ls"
HELP = "List snapshots, newest first"
GROUP = "Snapshots"

COLUMNS = {
    "ID": "SNAPSHOT ID",
    "Sandbox": "SANDBOX",
    "CreatedAt": "CREATED",
    "Layers": "LAYERS",
    "Size": "SIZE",
    "Total": "TOTAL",
    "Parent": "PARENT",
}


def configure(parser: argparse.ArgumentParser) -> None:
    _format.add_options(parser, quiet="only the digests")
    parser.add_argument("sandbox", nargs="?", default=None, metavar="SANDBOX", help="only those of this one")


DESCRIPTION = (
    f"{HELP}. LAYERS are those of memory and disk, SIZE is what its capture stored, TOTAL what its restore needs."
)


def run(options: argparse.Namespace) -> int:
    import msgspec

    from perdure.cli.fcrun._node import node

    with node() as client:
        found = client.store.list(sandbox=options.sandbox)
    rows = [_row(one, short=not options.no_trunc) for one in found]
    if options.quiet:
        for row in rows:
            print(row["ID"])
        return 0
    _format.show(rows, [msgspec.to_builtins(one) for one in found], COLUMNS, options.format)
    return 0


def _row(one: SnapshotSummary, *, short: bool) -> dict[str, str]:
    bad = bool(one.problem)
    return {
        "ID": _format.digest(one.digest, short=short),
        "Sandbox": "" if bad else one.sandbox_name or f"{one.sandbox_id} (gone)",
        "CreatedAt": "does not read" if bad else f"{_format.ago(one.created)} ago",
        "Layers": "" if bad else f"{one.memory_layers}+{one.disk_layers}",
        "Size": "" if bad else _format.size(one.stored_bytes),
        "Total": "" if bad else _format.size(one.total_bytes),
        "Parent": _format.digest(one.parent, short=short),
        "Tags": ",".join(one.tags),
        "Problem": one.problem,
    }
