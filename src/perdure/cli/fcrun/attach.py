"""fcrun attach"""

from __future__ import annotations

import argparse

NAME = "attach"
HELP = "Join this terminal to a running sandbox's main process"
GROUP = "Sandboxes"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-stdin", action="store_true", help="only look on")
    parser.add_argument("sandbox", metavar="SANDBOX")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun._node import node
    from perdure.cli.fcrun._terminal import follow_main

    with node() as client:
        info = client.get(options.sandbox)
        session = client.attach(info.id)
    stdin = info.spec.stdin and not options.no_stdin
    return follow_main(client, info.id, session, tty=info.spec.tty, stdin=stdin)
