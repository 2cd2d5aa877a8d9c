"""perdure queue pause"""

from __future__ import annotations

import argparse

NAME = "pause"
HELP = "Begin nothing of a queue; what was begun goes on"
GROUP = "Queues"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="QUEUE")


def run(options: argparse.Namespace) -> int:
    from perdure.client.server import ServerClient

    ServerClient().queues.change(options.name, paused=True)
    return 0
