"""perdure schedule rm"""

from __future__ import annotations

import argparse

NAME = "rm"
HELP = "Remove schedules; their runs go on"
GROUP = "Schedules"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", metavar="SCHEDULE", nargs="+")


def run(options: argparse.Namespace) -> int:
    from perdure.client.server import ServerClient

    for name in options.names:
        ServerClient().schedules.remove(name)
        print(name)
    return 0
