"""fcrun network create"""

from __future__ import annotations

import argparse

from perdure.cli.fcrun._refused import IPV6, add_refused

NAME = "create"
HELP = "Make a network, whose members reach each other by name"
GROUP = "Networks"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NETWORK")
    parser.add_argument(
        "--subnet", default="", metavar="CIDR", help="its addresses (default: free ones of 10.89.0.0/16)"
    )
    parser.add_argument("--internal", action="store_true", help="it leads nowhere but to its members")
    add_refused(parser, [IPV6])
    parser.add_argument("--label", action="append", default=[], metavar="NAME=VALUE", help="mark it")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun._node import node
    from perdure.cli.fcrun._process import pairs

    labels = pairs("--label", options.label)
    with node() as client:
        made = client.networks.create(options.name, subnet=options.subnet, internal=options.internal, labels=labels)
    print(made.id)
    return 0
