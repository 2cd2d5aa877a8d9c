"""fcrun stop"""

from __future__ import annotations

import argparse

NAME = "stop"
HELP = "Stop running sandboxes: their stop signal, and after a while KILL"
GROUP = "Common commands"


def configure(parser: argparse.ArgumentParser) -> None:
    add_stop_options(parser)
    parser.add_argument("sandboxes", nargs="+", metavar="SANDBOX")


def add_stop_options(parser: argparse.ArgumentParser) -> None:
    """What ``restart`` has as well."""
    parser.add_argument(
        *("-t", "--timeout", "--time"),
        dest="time",
        type=float,
        default=None,
        metavar="SECONDS",
        help="before KILL (its --stop-timeout, or 10); -1: never",
    )
    parser.add_argument("-s", "--signal", default="", metavar="SIGNAL", help="instead of its stop signal")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun._node import each, node

    with node() as client:
        return each(options.sandboxes, lambda ref: client.stop(ref, timeout_s=options.time, signal=options.signal))
