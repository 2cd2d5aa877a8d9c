"""perdure queue: the commands in ``queue_commands``."""

from __future__ import annotations

import os

from perdure.cli.perdure._flags import reword
from perdure.cli.program import Program

NAME = "queue"
HELP = "Lines that runs wait in, with limits of how many go on at once"
GROUP = "Runs"
PROGRAM = Program(
    "perdure queue",
    "perdure.cli.perdure.queue_commands",
    os.path.join(os.path.dirname(__file__), "queue_commands"),
    "A run that is started in a queue (perdure run --queue NAME) begins when the queue's limits let it: so many at "
    "once, so many with one --queue-key, so many in some time. Higher --priority first, then who came first.",
    ("Queues",),
    reword=reword,
)
