"""fcrun system info"""

from __future__ import annotations

import argparse
import json
from typing import Any

from perdure.cli.fcrun import _format

NAME = "info"
HELP = "Show what the node is"
GROUP = "System"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-f", "--format", default="", metavar="FORMAT", help="'json', or a template such as '{{.ServerVersion}}'"
    )


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun._node import node

    with node() as client:
        found = client.system()
    if options.format == "json":
        print(json.dumps(_docker(found) | found))
    elif options.format:
        print(_format.fill(options.format, _docker(found) | found))
    else:
        print("\n".join(_lines(found)))
    return 0


def _docker(found: dict[str, Any]) -> dict[str, Any]:
    """What docker's users ask for, by docker's names."""
    states: dict[str, int] = found["sandboxes"]
    running, paused = states.get("running", 0), states.get("paused", 0)
    asleep, total = states.get("suspended", 0), sum(states.values())
    return {
        "Containers": total,
        "ContainersRunning": running,
        "ContainersPaused": paused,
        "ContainersSuspended": asleep,
        "ContainersStopped": total - running - paused - asleep,
        "Images": found["images"],
        "ServerVersion": found["version"],
        "DockerRootDir": found["home"],
        "Driver": "firecracker",
    }


def _lines(found: dict[str, Any]) -> list[str]:
    states: dict[str, int] = found["sandboxes"]
    where = "in the emulated host" if found["emulated"] else "on this machine's KVM"
    return [
        f"Version: {found['version']}",
        f"Home: {found['home']}",
        f"Daemon: fcrund, pid {found['pid']}",
        *([f"Listening: {found['listen']}, TLS fingerprint {found['fingerprint']}"] if found.get("listen") else []),
        f"Machines: {where}",
        f"Images: {found['images']}",
        f"Sandboxes: {sum(states.values())}",
        *(f" {state.capitalize()}: {count}" for state, count in sorted(states.items())),
    ]
