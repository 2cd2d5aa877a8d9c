"""perdure down"""

from __future__ import annotations

import argparse

NAME = "down"
HELP = "End the server, the node, and the offline model"
GROUP = "This machine"
DESCRIPTION = (
    "End the server, the microVMs of runs, the offline model and the node of this state folder. Runs are kept: the "
    "next 'perdure up' goes on with them, from their snapshots and logs. What machines run in stays, for the next "
    "start ('fcrun host stop' ends that, too)."
)


def configure(parser: argparse.ArgumentParser) -> None:
    pass


def run(options: argparse.Namespace) -> int:
    from perdure.cli.perdure import _daemons
    from perdure.host.paths import Home

    ended = _daemons.stop_all(Home.find())
    print(f"down: {', '.join(ended)}" if ended else "down: nothing was running")
    return 0
