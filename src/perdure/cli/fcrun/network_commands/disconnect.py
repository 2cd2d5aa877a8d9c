"""fcrun network disconnect"""

from __future__ import annotations

import argparse

NAME = "disconnect"
HELP = "Take a sandbox out of a network"
GROUP = "Networks"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("network", metavar="NETWORK")
    parser.add_argument("sandbox", metavar="SANDBOX")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun._node import node

    with node() as client:
        client.networks.disconnect(options.network, options.sandbox)
    return 0
