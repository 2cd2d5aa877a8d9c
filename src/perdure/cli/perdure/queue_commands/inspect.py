"""perdure queue inspect"""

from __future__ import annotations

import argparse

NAME = "inspect"
HELP = "Show a queue as JSON: its limits, and the runs that wait in it"
GROUP = "Queues"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="QUEUE")


def run(options: argparse.Namespace) -> int:
    import json

    from perdure.client.server import ServerClient

    print(json.dumps(ServerClient().queues.get(options.name), indent=2))
    return 0
