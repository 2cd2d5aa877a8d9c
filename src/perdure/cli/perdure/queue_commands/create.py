"""perdure queue create"""

from __future__ import annotations

import argparse

from perdure.cli.perdure.queue_commands import _limits

NAME = "create"
HELP = "Make a queue"
GROUP = "Queues"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="QUEUE")
    _limits.add_options(parser)
    parser.add_argument("--paused", action="store_true", help="nothing begins until it is resumed")


def run(options: argparse.Namespace) -> int:
    from perdure.client.server import ServerClient

    made = ServerClient().queues.create(options.name, paused=options.paused, **_limits.fields(options))
    print(made["name"])
    return 0
