"""fcrun inspect"""

from __future__ import annotations

import argparse
import json
import sys

from perdure.cli.fcrun import _format

NAME = "inspect"
HELP = "Show all that is known of sandboxes, as JSON"
GROUP = "Sandboxes"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--format", default="json", metavar="FORMAT", help="'json' or a template: '{{.state}}'")
    parser.add_argument("sandboxes", nargs="+", metavar="SANDBOX")


def run(options: argparse.Namespace) -> int:
    import msgspec

    from perdure.cli.fcrun._node import FAILED, node
    from perdure.errors import NotFound

    found, missing = [], []
    with node() as client:
        for ref in options.sandboxes:
            try:
                known = msgspec.to_builtins(client.get(ref))
                found.append(known | {"snapshots": msgspec.to_builtins(client.snapshots(ref))})
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
