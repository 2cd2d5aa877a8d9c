"""perdure queue rm"""

from __future__ import annotations

import argparse

NAME = "rm"
HELP = "Remove queues in which nothing waits"
GROUP = "Queues"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", metavar="QUEUE", nargs="+")


def run(options: argparse.Namespace) -> int:
    from perdure.client.server import ServerClient

    for name in options.names:
        ServerClient().queues.remove(name)
        print(name)
    return 0
