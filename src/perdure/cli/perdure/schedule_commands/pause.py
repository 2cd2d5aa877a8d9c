"""perdure schedule pause"""

from __future__ import annotations

import argparse

NAME = "pause"
HELP = "Start nothing until it is resumed"
GROUP = "Schedules"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="SCHEDULE")


def run(options: argparse.Namespace) -> int:
    from perdure.client.server import ServerClient

    ServerClient().schedules.pause(options.name)
    return 0
