"""fcrun tag"""

from __future__ import annotations

import argparse

NAME = "tag"
HELP = "Give an image one more name"
GROUP = "Images"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="IMAGE", help="a name, or a digest or the beginning of it")
    parser.add_argument("name", metavar="NAME[:TAG]", help="another image that has this name loses it")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun._node import node

    with node() as client:
        client.tag_image(options.source, options.name)
    return 0
