"""fcrun port"""

from __future__ import annotations

import argparse

NAME = "port"
HELP = "List the published ports of a sandbox"
GROUP = "Sandboxes"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sandbox", metavar="SANDBOX")
    parser.add_argument("port", nargs="?", default="", metavar="PORT[/PROTOCOL]", help="only this one of its own ports")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun._network import places
    from perdure.cli.fcrun._node import node
    from perdure.errors import NotFound

    with node() as client:
        info = client.get(options.sandbox)
    wanted = options.port if not options.port or "/" in options.port else f"{options.port}/tcp"
    found = [port for port in info.ports if not wanted or f"{port.guest_port}/{port.protocol}" == wanted]
    if wanted and not found:
        raise NotFound(f"no public port '{wanted}' published for {options.sandbox}")
    for port in found:
        for place in places(port):
            print(place if wanted else f"{port.guest_port}/{port.protocol} -> {place}")
    return 0
