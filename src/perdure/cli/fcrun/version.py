"""fcrun version"""

from __future__ import annotations

import argparse
import json

from perdure import __version__

NAME = "version"
HELP = "Show the versions of fcrun and of the node"
GROUP = "System"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--short", action="store_true", help="one line, without asking the node")
    parser.add_argument("--format", default="table", choices=("table", "json"))


def run(options: argparse.Namespace) -> int:
    if options.short:
        print(f"fcrun version {__version__}")
        return 0
    from perdure.client.node import NodeClient
    from perdure.errors import Unavailable
    from perdure.host.paths import Home

    home = Home.find()
    try:
        node = NodeClient(home).system(timeout_s=5.0)
    except Unavailable:
        node = None  # asking for the version starts nothing
    if options.format == "json":
        print(json.dumps({"client": {"version": __version__}, "node": node}))
        return 0
    print(f"fcrun   {__version__}")
    if node is None:
        print("fcrund  not running (the first command that needs it starts it)")
    else:
        print(f"fcrund  {node['version']}, pid {node['pid']}, state folder {node['home']}")
    return 0
