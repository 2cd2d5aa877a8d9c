"""fcrun volume prune"""

from __future__ import annotations

import argparse
import sys

from perdure.cli.fcrun import _format

NAME = "prune"
HELP = "Remove volumes without a name that no sandbox has"
GROUP = "Volumes"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-a", "--all", action="store_true", help="those with a name too")
    parser.add_argument("-f", "--force", action="store_true", help="do not ask")
    parser.add_argument("--filter", action="append", default=[], metavar="FILTER", help="label=, label!=")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun import _volumes
    from perdure.cli.fcrun._node import node

    wanted = _volumes.filters(options.filter, ("label", "label!", "all"))
    every = options.all or any(value in ("1", "true") for name, value in wanted if name == "all")
    if not options.force and not _agreed(every=every):
        return 0
    wanted = [one for one in wanted if one[0] != "all"]
    with node() as client:
        unused = {
            volume.name: volume
            for volume in client.volumes.list()
            if not volume.users and (every or volume.anonymous) and _volumes.matches(volume, wanted)
        }
        removed = client.volumes.prune(unused)
    if removed:
        print("Deleted Volumes:", *removed, "", sep="\n")
    print(f"Total reclaimed space: {_format.size(sum(unused[name].used_bytes for name in removed))}")
    return 0


def _agreed(*, every: bool) -> bool:
    from perdure.errors import InvalidValue

    what = "all volumes" if every else "volumes without a name"
    print(f"WARNING! This will remove {what} that no sandbox has.")
    if not sys.stdin.isatty():
        raise InvalidValue("nobody can be asked here", hint="fcrun volume prune --force")
    return input("Are you sure you want to continue? [y/N] ").strip().lower() in ("y", "yes")
