"""fcrun snapshot export"""

from __future__ import annotations

import argparse

NAME = "export"
HELP = "Write a snapshot, with all that it needs, into one file; `fcrun snapshot import` reads it"
GROUP = "Other stores"
DESCRIPTION = f"{HELP}. The file is a tar in the OCI layout: it has what `fcrun snapshot push` would send."


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", default="-", metavar="FILE", help="instead of stdout")
    parser.add_argument("snapshot", metavar="SNAPSHOT")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun._files import save
    from perdure.cli.fcrun._node import node

    with node() as client:
        save(client.store.export(options.snapshot), options.output)
    return 0
