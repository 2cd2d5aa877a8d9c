"""perdure schedule run"""

from __future__ import annotations

import argparse

NAME = "run"
HELP = "Start a run of it now, beside what is due"
GROUP = "Schedules"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="SCHEDULE")


def run(options: argparse.Namespace) -> int:
    from perdure.client.server import ServerClient

    print(ServerClient().schedules.run(options.name).id)
    return 0
