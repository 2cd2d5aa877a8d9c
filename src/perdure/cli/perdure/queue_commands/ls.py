"""perdure queue ls"""

from __future__ import annotations

import argparse

NAME = "ls"
HELP = "List queues"
GROUP = "Queues"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(options: argparse.Namespace) -> int:
    import json

    from perdure.cli.perdure import _words
    from perdure.cli.perdure.queue_commands import _limits
    from perdure.client.server import ServerClient

    found = ServerClient().queues.list()
    if options.json:
        for queue in found:
            print(json.dumps(queue))
        return 0
    headings = ["QUEUE", "STATE", "WAITING", "ACTIVE", "AT ONCE", "PER KEY", "RATE"]
    print(_words.table(headings, [_limits.line(queue) for queue in found]), end="")
    return 0
