"""perdure schedule: the commands in ``schedule_commands``."""

from __future__ import annotations

import os

from perdure.cli.perdure._flags import reword
from perdure.cli.program import Program

NAME = "schedule"
HELP = "Runs that are started by the clock"
GROUP = "Runs"
PROGRAM = Program(
    "perdure schedule",
    "perdure.cli.perdure.schedule_commands",
    os.path.join(os.path.dirname(__file__), "schedule_commands"),
    "A schedule starts runs by cron in a time zone, or every so often. Each due moment starts one run, also when the "
    "server was away (--catch-up).",
    ("Schedules",),
    reword=reword,
)
