"""perdure queue set"""

from __future__ import annotations

import argparse

from perdure.cli.perdure.queue_commands import _limits

NAME = "set"
HELP = "Change a queue's limits; what waits goes by them at once ('none': no such limit)"
GROUP = "Queues"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="QUEUE")
    _limits.add_options(parser)


def run(options: argparse.Namespace) -> int:
    from perdure.client.server import ServerClient
    from perdure.errors import InvalidValue

    fields = _limits.fields(options)
    if not fields:
        raise InvalidValue("nothing to change", hint="give --concurrency, --key-concurrency or --rate")
    ServerClient().queues.change(options.name, **fields)
    return 0
