"""perdure schedule rm"""

from __future__ import annotations

import argparse

NAME = "rm"
HELP = "Remove a schedule; its runs go on"
GROUP = "Schedules"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="SCHEDULE")


def run(options: argparse.Namespace) -> int:
    from perdure.client.server import ServerClient

    ServerClient().schedules.remove(options.name)
    return 0
