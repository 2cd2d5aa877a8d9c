"""fcrun unpause"""

from __future__ import annotations

import argparse

NAME = "unpause"
HELP = "Let sandboxes that are paused go on"
GROUP = "Sandboxes"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sandboxes", nargs="+", metavar="SANDBOX")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun._node import each, node

    with node() as client:
        return each(options.sandboxes, client.unpause)
