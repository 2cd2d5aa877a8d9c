"""fcrun network connect"""

from __future__ import annotations

import argparse

NAME = "connect"
HELP = "Put a sandbox into one more network, also while it runs"
GROUP = "Networks"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--alias", action="append", default=[], metavar="NAME", help="another name of it there")
    parser.add_argument("network", metavar="NETWORK")
    parser.add_argument("sandbox", metavar="SANDBOX")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun._node import node

    with node() as client:
        client.networks.connect(options.network, options.sandbox, options.alias)
    return 0
