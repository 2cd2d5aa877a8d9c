"""perdure schedule inspect"""

from __future__ import annotations

import argparse

NAME = "inspect"
HELP = "Show a schedule as JSON: what it starts, and when it is due next"
GROUP = "Schedules"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="SCHEDULE")


def run(options: argparse.Namespace) -> int:
    import json

    from perdure.client.server import ServerClient

    print(json.dumps(ServerClient().schedules.get(options.name), indent=2))
    return 0
