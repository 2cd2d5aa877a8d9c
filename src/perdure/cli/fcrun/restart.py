"""fcrun restart"""

from __future__ import annotations

import argparse

from perdure.cli.fcrun.stop import add_stop_options

NAME = "restart"
HELP = "Stop sandboxes and start them again, on their files"
GROUP = "Sandboxes"


def configure(parser: argparse.ArgumentParser) -> None:
    add_stop_options(parser)
    parser.add_argument("sandboxes", nargs="+", metavar="SANDBOX")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun._node import each, node

    with node() as client:

        def restart(ref: str) -> None:
            sandbox_id = client.stop(ref, timeout_s=options.time, signal=options.signal).id
            client.start(sandbox_id)

        return each(options.sandboxes, restart)
