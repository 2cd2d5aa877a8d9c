"""fcrun restart"""

from __future__ import annotations

import argparse

NAME = "restart"
HELP = "Stop sandboxes and start them again, on their files"
GROUP = "Sandboxes"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-t", "--time", type=float, default=10.0, metavar="SECONDS", help="before KILL (10)")
    parser.add_argument("sandboxes", nargs="+", metavar="SANDBOX")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun._node import each, node

    with node() as client:

        def restart(ref: str) -> None:
            sandbox_id = client.stop(ref, timeout_s=options.time).id
            client.start(sandbox_id)

        return each(options.sandboxes, restart)
