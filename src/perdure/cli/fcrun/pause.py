"""fcrun pause"""

from __future__ import annotations

import argparse

NAME = "pause"
HELP = "Let sandboxes stand still in memory; `fcrun suspend` frees the memory too"
GROUP = "Sandboxes"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sandboxes", nargs="+", metavar="SANDBOX")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun._node import each, node

    with node() as client:
        return each(options.sandboxes, client.pause)
