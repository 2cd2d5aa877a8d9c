"""fcrun snapshot: the commands in ``snapshot_commands``."""

from __future__ import annotations

import os

from perdure.cli.program import Program

NAME = "snapshot"
HELP = "List, verify, explain, compact, push, pull and remove snapshots"
GROUP = "Snapshots"
PROGRAM = Program(
    "fcrun snapshot",
    "perdure.cli.fcrun.snapshot_commands",
    os.path.join(os.path.dirname(__file__), "snapshot_commands"),
    "SNAPSHOT is a digest, a unique beginning of one, a tag, or a sandbox: its newest snapshot.",
    ("Snapshots", "The store", "Other stores"),
    docker=True,
)
