"""perdure schedule resume"""

from __future__ import annotations

import argparse

NAME = "resume"
HELP = "Start runs again, from now on"
GROUP = "Schedules"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="SCHEDULE")


def run(options: argparse.Namespace) -> int:
    from perdure.client.server import ServerClient

    ServerClient().schedules.resume(options.name)
    return 0
