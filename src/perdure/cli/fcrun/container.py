"""fcrun container: docker's longer way to write the same commands."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import ModuleType

from perdure.cli import fcrun
from perdure.cli.program import Program

NAME = "container"
HELP = "Docker's longer names: fcrun container ls is fcrun ps"
GROUP = "Sandboxes"

SAME = ("ls", "list", "ps")
GROUPS = ("Common commands", "Sandboxes")
NOT_OURS = ("container", "images", "events")


class Aliases(Program):
    """The commands of fcrun that are about sandboxes."""

    def command_names(self) -> list[str]:
        names = [name for name in fcrun.PROGRAM.command_names() if name not in NOT_OURS]
        return sorted({*(name for name in names if fcrun.PROGRAM.command_module(name).GROUP in GROUPS), *SAME})

    def command_module(self, name: str) -> ModuleType:
        return fcrun.PROGRAM.command_module("ps" if name in SAME else name)

    def pages(self) -> Iterator[tuple[str, str]]:
        """None: they have their pages."""
        return iter(())


PROGRAM = Aliases(
    "fcrun",
    fcrun.__name__,
    os.path.dirname(__file__),
    "The commands about sandboxes, by docker's longer names",
    GROUPS,
    docker=True,
)
