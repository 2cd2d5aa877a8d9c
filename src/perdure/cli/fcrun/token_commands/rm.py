"""fcrun token rm"""

from __future__ import annotations

import argparse

NAME = "rm"
HELP = "Remove tokens: what they have open ends at once, their sandboxes stay"
GROUP = "System"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tokens", nargs="+", metavar="TOKEN", help="id or name")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun._node import each, node

    with node() as client:
        return each(options.tokens, client.border.remove_token)
