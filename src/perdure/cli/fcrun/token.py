"""fcrun token: the commands in ``token_commands``."""

from __future__ import annotations

import os

from perdure.cli.program import Program

NAME = "token"
HELP = "Make, list and remove the tokens that let others use the node over TCP"
GROUP = "System"
PROGRAM = Program(
    "fcrun token",
    "perdure.cli.fcrun.token_commands",
    os.path.join(os.path.dirname(__file__), "token_commands"),
    "Who may use the node over TCP (settings.toml: [node] listen), and for what.",
    ("System",),
    docker=True,
)
