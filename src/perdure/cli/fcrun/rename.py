"""fcrun rename"""

from __future__ import annotations

import argparse

NAME = "rename"
HELP = "Give a sandbox another name"
GROUP = "Sandboxes"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sandbox", metavar="SANDBOX")
    parser.add_argument("name", metavar="NEW_NAME")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun._node import node

    with node() as client:
        client.rename(options.sandbox, options.name)
    return 0
