"""fcrun rm"""

from __future__ import annotations

import argparse

NAME = "rm"
HELP = "Remove sandboxes with their files and snapshots"
GROUP = "Common commands"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--force", action="store_true", help="also while they run")
    parser.add_argument("-v", "--volumes", action="store_true", help="their volumes without a name as well")
    parser.add_argument("sandboxes", nargs="+", metavar="SANDBOX")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun._node import each, node
    from perdure.errors import NotFound

    with node() as client:

        def remove(ref: str) -> None:
            try:
                client.remove(ref, force=options.force, volumes=options.volumes)
            except NotFound:
                if not options.force:  # docker's rm -f is content when there is nothing to remove
                    raise

        return each(options.sandboxes, remove)
