"""fcrun network prune"""

from __future__ import annotations

import argparse
import sys

NAME = "prune"
HELP = "Remove all networks that no sandbox is in"
GROUP = "Networks"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--force", action="store_true", help="do not ask")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun._node import node
    from perdure.errors import Conflict

    if not options.force:
        sys.stderr.write("This removes all networks that no sandbox is in. Go on? [y/N] ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            return 0
    with node() as client:
        for network in client.networks.list():
            if network.members or network.name == "bridge":
                continue
            try:
                client.networks.remove(network.id)
                print(network.name)
            except Conflict:
                continue  # somebody joined it in this moment
    return 0
