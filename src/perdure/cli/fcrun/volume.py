"""fcrun volume: the commands in ``volume_commands``."""

from __future__ import annotations

import os

from perdure.cli.program import Program

NAME = "volume"
HELP = "Disks that outlive sandboxes, and go from one to the next"
GROUP = "Sandboxes"
PROGRAM = Program(
    "fcrun volume",
    "perdure.cli.fcrun.volume_commands",
    os.path.join(os.path.dirname(__file__), "volume_commands"),
    "A volume is an ext4 disk of its own: fcrun run -v NAME:/path. One sandbox writes it at a time, and keeps it while "
    "it is suspended; any number can read it (:ro). Snapshots do not hold it.",
    ("Volumes",),
    docker=True,
)
