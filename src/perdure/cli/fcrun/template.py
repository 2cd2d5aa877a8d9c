"""fcrun template: the commands in ``template_commands``."""

from __future__ import annotations

import os

from perdure.cli.program import Program

NAME = "template"
HELP = "Start a workload once, and run any number of sandboxes from where it is then"
GROUP = "Images"
PROGRAM = Program(
    "fcrun template",
    "perdure.cli.fcrun.template_commands",
    os.path.join(os.path.dirname(__file__), "template_commands"),
    "A template is a workload that was started and sleeps since it was ready: fcrun run --template NAME goes on there.",
    ("Templates",),
    docker=True,
)
