"""fcrun load"""

from __future__ import annotations

import argparse

NAME = "load"
HELP = "Load images from a `docker save` or OCI archive"
GROUP = "Images"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-i", "--input", default="-", metavar="FILE", help="instead of stdin")
    parser.add_argument("-q", "--quiet", action="store_true", help="only the names")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun._files import chunks
    from perdure.cli.fcrun._node import node

    with node() as client, chunks(options.input) as archive:
        images = client.load_images(archive)
    for image in images:
        name = image.name or image.digest
        print(name if options.quiet else f"Loaded image: {name}")
    return 0
