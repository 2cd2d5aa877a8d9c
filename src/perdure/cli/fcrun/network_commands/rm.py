"""fcrun network rm"""

from __future__ import annotations

import argparse
import sys

NAME = "rm"
HELP = "Remove networks that no sandbox is in"
GROUP = "Networks"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("networks", nargs="+", metavar="NETWORK")
    parser.add_argument("-f", "--force", action="store_true", help="no error for one that does not exist")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun._node import node
    from perdure.errors import NotFound, PerdureError

    failed = False
    with node() as client:
        for ref in options.networks:
            try:
                client.networks.remove(ref)
                print(ref)
            except NotFound as error:
                if not options.force:
                    failed = True
                    sys.stderr.write(f"fcrun: {error}\n")
            except PerdureError as error:
                failed = True
                sys.stderr.write(f"fcrun: {error}\n")
    return 1 if failed else 0
