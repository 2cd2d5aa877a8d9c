"""perdure log: the commands in ``log_commands``."""

from __future__ import annotations

import os

from perdure.cli.perdure._flags import reword
from perdure.cli.program import Program

NAME = "log"
HELP = "Show, verify, export and prune the context logs of runs"
GROUP = "Runs"
PROGRAM = Program(
    "perdure log",
    "perdure.cli.perdure.log_commands",
    os.path.join(os.path.dirname(__file__), "log_commands"),
    "The context log of a run: all that it said and did. 'perdure log RUN' shows it.",
    ("Runs",),
    usual="show",
    reword=reword,
)
