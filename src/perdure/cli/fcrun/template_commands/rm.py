"""fcrun template rm"""

from __future__ import annotations

import argparse

NAME = "rm"
HELP = "Remove templates; sandboxes that were run from them go on"
GROUP = "Templates"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("templates", nargs="+", metavar="TEMPLATE")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun._node import each, node

    with node() as client:
        return each(options.templates, client.remove_template)
