"""fcrun network: the commands in ``network_commands``."""

from __future__ import annotations

import os

from perdure.cli.program import Program

NAME = "network"
HELP = "Make and remove networks that sandboxes reach each other in"
GROUP = "Networks"
PROGRAM = Program(
    "fcrun network",
    "perdure.cli.fcrun.network_commands",
    os.path.join(os.path.dirname(__file__), "network_commands"),
    "Networks of sandboxes: 'bridge', where each is alone with the world, and those that are made by name.",
    ("Networks",),
    docker=True,
)
