"""fcrun volume ls"""

from __future__ import annotations

import argparse

from perdure.cli.fcrun import _format

NAME = "ls"
HELP = "List volumes"
GROUP = "Volumes"
DESCRIPTION = (
    "List volumes. Fields of a --format besides docker's .Driver, .Name, .Scope, .Mountpoint and .Labels: .Size (what "
    "it takes on the node's disk), .Limit (what fits on it), .UsedBy (the sandboxes that have it) and .Created."
)

COLUMNS = {"Driver": "DRIVER", "Name": "VOLUME NAME"}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-f", "--filter", action="append", default=[], metavar="FILTER", help="name=, label=, driver=, dangling=true"
    )
    parser.add_argument(
        "--format", default="table", metavar="FORMAT", help="'table', 'json', or a template such as '{{.Name}}'"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="only the names")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun import _volumes
    from perdure.cli.fcrun._node import node

    wanted = _volumes.filters(options.filter, ("name", "label", "driver", "dangling"))
    with node() as client:
        found = [volume for volume in client.volumes.list() if _volumes.matches(volume, wanted)]
    if options.quiet:
        for volume in found:
            print(volume.name)
        return 0
    rows = [_volumes.row(volume) for volume in found]
    _format.show(rows, rows, COLUMNS, options.format)
    return 0
