"""fcrun import"""

from __future__ import annotations

import argparse

NAME = "import"
HELP = "Make an image from the tar of a root file system, or from Debian packages"
GROUP = "Images"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-c", "--change", action="append", default=[], metavar="INSTRUCTION", help="such as 'CMD python3' or 'ENV A=b'"
    )
    parser.add_argument(
        "--packages", default=None, metavar="NAME,NAME", help="instead of a FILE: a minimal Debian with these packages"
    )
    parser.add_argument("--suite", default=None, help="with --packages: the Debian release (default: this machine's)")
    parser.add_argument("source", metavar="FILE", help="a tar; - for stdin; with --packages: the image's name")
    parser.add_argument("name", nargs="?", default="", metavar="NAME[:TAG]")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun._files import chunks
    from perdure.cli.fcrun._node import node
    from perdure.errors import InvalidValue

    if options.packages is not None:
        if options.name or options.change:
            raise InvalidValue(
                "--packages takes only the image's name", hint="fcrun import --packages bash,python3 NAME"
            )
        with node() as client:
            packages = [name for name in options.packages.split(",") if name]
            image = client.build_image(options.source, packages, suite=options.suite)
    else:
        if not options.name:
            raise InvalidValue("the image needs a name", hint=f"fcrun import {options.source} NAME")
        with node() as client, chunks(options.source) as tar:
            image = client.import_image(options.name, tar, changes=options.change)
    print(image.digest)
    return 0
