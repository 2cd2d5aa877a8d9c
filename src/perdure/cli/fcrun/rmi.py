"""fcrun rmi"""

from __future__ import annotations

import argparse

NAME = "rmi"
HELP = "Remove images that no sandbox uses"
GROUP = "Images"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun._node import each, node

    with node() as client:
        return each(options.images, client.remove_image)
