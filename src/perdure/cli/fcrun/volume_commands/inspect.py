"""fcrun volume inspect"""

from __future__ import annotations

import argparse

from perdure.cli.fcrun import _inspection

NAME = "inspect"
HELP = "Show all that is known of volumes, as JSON"
GROUP = "Volumes"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-f", "--format", default="json", metavar="FORMAT", help="'json' or a template: '{{.Mountpoint}}'"
    )
    parser.add_argument("volumes", nargs="+", metavar="VOLUME")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun import _volumes
    from perdure.cli.fcrun._node import node
    from perdure.errors import NotFound

    found, missing = [], []
    with node() as client:
        for name in options.volumes:
            try:
                found.append(_volumes.facts(client.volumes.get(name)))
            except NotFound as error:
                missing.append(error)
    return _inspection.show(found, missing, options.format)
