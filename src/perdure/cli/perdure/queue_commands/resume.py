"""perdure queue resume"""

from __future__ import annotations

import argparse

NAME = "resume"
HELP = "Let a queue's runs begin again"
GROUP = "Queues"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="QUEUE")


def run(options: argparse.Namespace) -> int:
    from perdure.client.server import ServerClient

    ServerClient().queues.change(options.name, paused=False)
    return 0
