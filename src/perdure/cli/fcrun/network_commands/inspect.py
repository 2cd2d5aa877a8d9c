"""fcrun network inspect"""

from __future__ import annotations

import argparse

from perdure.cli.fcrun import _inspection

NAME = "inspect"
HELP = "Show networks as JSON, with their members"
GROUP = "Networks"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("networks", nargs="+", metavar="NETWORK")
    parser.add_argument("-f", "--format", default="", metavar="FORMAT", help="a template such as '{{.Subnet}}'")


def run(options: argparse.Namespace) -> int:
    import msgspec

    from perdure.cli.fcrun._node import node

    with node() as client:
        found = [msgspec.to_builtins(client.networks.get(ref)) for ref in options.networks]
    return _inspection.show(found, [], options.format or "json")
