"""fcrun start"""

from __future__ import annotations

import argparse

from perdure.cli.fcrun._process import add_terminal_options, check_keys, terminal_wishes

NAME = "start"
HELP = "Start created or exited sandboxes (an exited one boots again, on its files)"
GROUP = "Sandboxes"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-a", "--attach", action="store_true", help="show its output, until it exits")
    add_terminal_options(parser)
    parser.add_argument("-i", "--interactive", action="store_true", help="with -a: give it stdin")
    parser.add_argument("sandboxes", nargs="+", metavar="SANDBOX")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun._node import each, node
    from perdure.cli.fcrun._terminal import follow_main
    from perdure.errors import InvalidValue

    check_keys(options)
    with node() as client:
        if not options.attach:
            return each(options.sandboxes, client.start)
        if len(options.sandboxes) > 1:
            raise InvalidValue("-a takes one sandbox", hint="Start the others without -a.")
        info = client.get(options.sandboxes[0])
        session = client.attach(info.id, waits=True)  # before: what it writes at once is not missed
        client.start(info.id)
    return follow_main(
        client, info.id, session, tty=info.spec.tty, stdin=options.interactive, **terminal_wishes(options)
    )
