"""fcrun version"""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from perdure import __version__

NAME = "version"
HELP = "Show the versions of fcrun and of the node"
GROUP = "System"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--short", action="store_true", help="one line, without asking the node")
    parser.add_argument(
        "-f",
        "--format",
        default="table",
        metavar="FORMAT",
        help="'table', 'json', or a template: '{{.Server.Version}}'",
    )


def run(options: argparse.Namespace) -> int:
    if options.short:
        print(f"fcrun version {__version__}")
        return 0
    from perdure.client.node import NodeClient
    from perdure.errors import Unavailable
    from perdure.host.paths import Home

    home = Home.find()
    try:
        node = NodeClient.named(os.environ, home).system(timeout_s=5.0)
    except Unavailable:
        node = None  # asking for the version starts nothing
    if options.format in ("", "table"):
        print(f"fcrun   {__version__}")
        if node is None:
            print("fcrund  not running (the first command that needs it starts it)")
        else:
            print(f"fcrund  {node['version']}, pid {node['pid']}, state folder {node['home']}")
        return 0
    found: dict[str, Any] = {  # docker's words, and fcrun's own
        "Client": {"Version": __version__},
        "Server": {"Version": node["version"]} if node else None,
        "client": {"version": __version__},
        "node": node,
    }
    if options.format == "json":
        print(json.dumps(found))
        return 0
    from perdure.cli.fcrun import _format

    print(_format.fill(options.format, found))
    return 0
