"""fcrun image: the commands in ``image_commands``, most of which are commands of their own too."""

from __future__ import annotations

import os

from perdure.cli.program import Program

NAME = "image"
HELP = "Manage images"
GROUP = "Images"
PROGRAM = Program(
    "fcrun image",
    "perdure.cli.fcrun.image_commands",
    os.path.join(os.path.dirname(__file__), "image_commands"),
    "The images of this node.",
    ("Images",),
    docker=True,
)
