"""perdure: durable agents. One module per command (see ``cli.program``); exit statuses are those of ``errors``."""

from __future__ import annotations

import os

from perdure.cli.perdure._flags import reword
from perdure.cli.program import Program

PROGRAM = Program(
    "perdure",
    __name__,
    os.path.dirname(__file__),
    "Durable agents: what they said is kept in a log, what they run on in snapshots.",
    ("This machine", "Runs", "Time travel", "People"),
    reword=reword,
)
command_names = PROGRAM.command_names
command_module = PROGRAM.command_module
parser_of = PROGRAM.parser_of
main = PROGRAM.main
