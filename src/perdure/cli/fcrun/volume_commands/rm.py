"""fcrun volume rm"""

from __future__ import annotations

import argparse

NAME = "rm"
HELP = "Remove volumes that no sandbox has, with all that is on them"
GROUP = "Volumes"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--force", action="store_true", help="be content where there is no such volume")
    parser.add_argument("volumes", nargs="+", metavar="VOLUME")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun._node import each, node
    from perdure.errors import NotFound

    with node() as client:

        def remove(name: str) -> None:
            try:
                client.volumes.remove(name)
            except NotFound:
                if not options.force:
                    raise

        return each(options.volumes, remove)
