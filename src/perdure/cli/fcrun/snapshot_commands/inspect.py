"""fcrun snapshot inspect"""

from __future__ import annotations

import argparse
from typing import Any

from perdure.cli.fcrun import _inspection

NAME = "inspect"
HELP = "Show all that is known of snapshots, as JSON"
GROUP = "Snapshots"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-f", "--format", default="json", metavar="FORMAT", help="'json' or a template: '{{.config.template}}'"
    )
    parser.add_argument("snapshots", nargs="+", metavar="SNAPSHOT")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun._node import node
    from perdure.errors import PerdureError

    found: list[dict[str, Any]] = []
    failures = []
    with node() as client:
        for ref in options.snapshots:
            try:
                found.append(client.store.inspect(ref))
            except PerdureError as error:
                failures.append(error)
    return _inspection.show(found, failures, options.format)
