"""fcrun volume inspect"""

from __future__ import annotations

import argparse
import json
import sys

from perdure.cli.fcrun import _format

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
    from perdure.cli.fcrun._node import FAILED, node
    from perdure.errors import NotFound

    found, missing = [], []
    with node() as client:
        for name in options.volumes:
            try:
                found.append(_volumes.facts(client.volumes.get(name)))
            except NotFound as error:
                missing.append(error)
    if options.format == "json":
        print(json.dumps(found, indent=4))
    else:
        for one in found:
            print(_format.fill(options.format, one))
    for gone in missing:
        sys.stderr.write(f"fcrun: {gone}\n")
    return FAILED if missing else 0
