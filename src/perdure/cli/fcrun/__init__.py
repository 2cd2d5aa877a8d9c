"""fcrun: sandboxes, as Docker does containers. One module per command (see ``cli.program``)."""

from __future__ import annotations

import os

from perdure.cli.program import Program

PROGRAM = Program(
    "fcrun",
    __name__,
    os.path.dirname(__file__),
    "Sandboxes that last: Docker's words, for Firecracker microVMs",
    ("Common commands", "Sandboxes", "Snapshots", "Images", "Networks", "Host", "System"),
    docker=True,
)
command_names = PROGRAM.command_names
command_module = PROGRAM.command_module
parser_of = PROGRAM.parser_of
main = PROGRAM.main
