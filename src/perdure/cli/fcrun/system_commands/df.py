"""fcrun system df"""

from __future__ import annotations

import argparse

from perdure.cli.fcrun import _format

NAME = "df"
HELP = "Show what the node's disk is taken by"
GROUP = "System"
DESCRIPTION = (
    "Show what the node's disk is taken by. RECLAIMABLE is what nothing needs: images without a sandbox, sandboxes "
    "that have exited or never ran (fcrun system prune); volumes that no sandbox has (fcrun volume prune); snapshots "
    "and templates that no sandbox and no tag needs (fcrun snapshot gc). Kept disks and frames make resumes quicker, "
    "and go by themselves when room gets scarce."
)

COLUMNS = {
    "Type": "TYPE",
    "TotalCount": "TOTAL",
    "Active": "ACTIVE",
    "Size": "SIZE",
    "Reclaimable": "RECLAIMABLE",
}
WORDS = {"kept-disks": "Kept disks", "frames": "Frames of stores"}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--format", default="table", metavar="FORMAT", help="'table', 'json', or a template such as '{{.Size}}'"
    )


def run(options: argparse.Namespace) -> int:
    import msgspec

    from perdure.cli.fcrun._node import node

    with node() as client:
        found = client.disk_use()
    rows = []
    for use in found:
        share = f" ({100 * use.reclaimable_bytes // use.size_bytes}%)" if use.size_bytes else ""
        rows.append(
            {
                "Type": WORDS.get(use.kind, use.kind.capitalize()),
                "TotalCount": str(use.total),
                "Active": str(use.active),
                "Size": _format.size(use.size_bytes),
                "Reclaimable": _format.size(use.reclaimable_bytes) + share,
            }
        )
    _format.show(rows, [msgspec.to_builtins(use) for use in found], COLUMNS, options.format)
    return 0
