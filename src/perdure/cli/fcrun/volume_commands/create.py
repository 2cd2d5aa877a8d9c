"""fcrun volume create"""

from __future__ import annotations

import argparse

from perdure.model import DEFAULT_VOLUME_MIB

NAME = "create"
HELP = "Create a volume"
GROUP = "Volumes"
DESCRIPTION = (
    "Create a volume, and print its name. It takes room on the node's disk only for what is written to it. One of "
    "that name is taken as it is, as docker does."
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-d", "--driver", default="local", choices=["local"], help="local is the only one")
    parser.add_argument("--label", action="append", default=[], metavar="NAME=VALUE", help="mark it")
    parser.add_argument("-o", "--opt", action="append", default=[], metavar="size=SIZE", help="as --size")
    parser.add_argument("--size", default="", metavar="SIZE", help=f"how much fits on it ({DEFAULT_VOLUME_MIB}m)")
    parser.add_argument(
        "--name", default="", dest="named", metavar="NAME", help=argparse.SUPPRESS
    )  # docker's former way
    parser.add_argument("name", nargs="?", default="", metavar="VOLUME", help="none: one without a name")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun._node import node
    from perdure.cli.fcrun._process import mebibytes, pairs
    from perdure.errors import InvalidValue

    size = options.size
    for option, value in pairs("--opt", options.opt).items():
        if option != "size":
            raise InvalidValue(f"--opt: unknown option {option!r}", hint="A volume has size=SIZE.")
        size = size or value
    with node() as client:
        size_mib = mebibytes("--size", size, DEFAULT_VOLUME_MIB) if size else None
        labels = pairs("--label", options.label)
        print(client.volumes.create(options.name or options.named, size_mib=size_mib, labels=labels).name)
    return 0
