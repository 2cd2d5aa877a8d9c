"""fcrun kill"""

from __future__ import annotations

import argparse

NAME = "kill"
HELP = "Send a signal to the main process of sandboxes"
GROUP = "Sandboxes"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-s", "--signal", default="KILL", metavar="SIGNAL", help="name or number (KILL)")
    parser.add_argument("sandboxes", nargs="+", metavar="SANDBOX")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun._node import each, node

    with node() as client:
        return each(options.sandboxes, lambda ref: client.kill(ref, signal=options.signal))
