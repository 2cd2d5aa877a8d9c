"""fcrun snapshot rm"""

from __future__ import annotations

import argparse

NAME = "rm"
HELP = "Remove snapshots; what others need of them stays"
GROUP = "Snapshots"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-f",
        "--force",
        action="store_true",
        help="also what a sandbox is suspended to: it goes back",
    )
    parser.add_argument("snapshots", nargs="+", metavar="SNAPSHOT")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun._node import each, node

    with node() as client:
        return each(options.snapshots, lambda ref: client.store.remove(ref, force=options.force))
