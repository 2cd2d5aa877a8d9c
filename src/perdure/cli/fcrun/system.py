"""fcrun system: the commands in ``system_commands``."""

from __future__ import annotations

import os

from perdure.cli.program import Program

NAME = "system"
HELP = "Show what the node is and what its disk is taken by, and remove what nothing needs"
GROUP = "System"
PROGRAM = Program(
    "fcrun system",
    "perdure.cli.fcrun.system_commands",
    os.path.join(os.path.dirname(__file__), "system_commands"),
    "The node of this user, and its disk.",
    ("System",),
    docker=True,
)
