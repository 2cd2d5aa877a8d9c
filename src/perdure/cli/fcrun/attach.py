"""fcrun attach"""

from __future__ import annotations

import argparse

from perdure.cli.fcrun._process import add_terminal_options, check_keys, terminal_wishes

NAME = "attach"
HELP = "Join this terminal to a sandbox's main process (a suspended one is resumed first)"
GROUP = "Sandboxes"


def configure(parser: argparse.ArgumentParser) -> None:
    add_terminal_options(parser)
    parser.add_argument("--no-stdin", action="store_true", help="only look on")
    parser.add_argument("sandbox", metavar="SANDBOX")


def run(options: argparse.Namespace) -> int:
    check_keys(options)
    from perdure.cli.fcrun import _node
    from perdure.cli.fcrun._terminal import follow_main

    with _node.node() as client:
        info = client.get(options.sandbox)
        _node.tell_if_asleep(info)
        session = client.attach(info.id, wakes=True)
    stdin = info.spec.stdin and not options.no_stdin
    return follow_main(client, info.id, session, tty=info.spec.tty, stdin=stdin, **terminal_wishes(options))
