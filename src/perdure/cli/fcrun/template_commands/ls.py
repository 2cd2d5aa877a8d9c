"""fcrun template ls"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from perdure.cli.fcrun import _format

if TYPE_CHECKING:
    from perdure.model import Recipe, TemplateInfo

NAME = "ls"
HELP = "List templates of workloads"
GROUP = "Templates"
DESCRIPTION = (
    f"{HELP}. READY: what had to hold before it was put to sleep. SIZE: what it stored. STATE: fresh, or stale: what "
    "it was made from has changed since, and the next run from it builds it again."
)

COLUMNS = {
    "Name": "NAME",
    "Image": "IMAGE",
    "Command": "COMMAND",
    "Ready": "READY",
    "Size": "SIZE",
    "CreatedSince": "CREATED",
    "State": "STATE",
}
COMMAND_WIDTH = 30


def configure(parser: argparse.ArgumentParser) -> None:
    _format.add_options(parser, quiet="only the names")


def run(options: argparse.Namespace) -> int:
    import msgspec

    from perdure.cli.fcrun._node import node

    with node() as client:
        found = client.templates()
    if options.quiet:
        for one in found:
            print(one.name)
        return 0
    rows = [row(one, short=not options.no_trunc) for one in found]
    _format.show(rows, [msgspec.to_builtins(one) for one in found], COLUMNS, options.format)
    return 0


def row(one: TemplateInfo, *, short: bool) -> dict[str, str]:
    spec = one.recipe.spec
    words = " ".join([*(spec.entrypoint or ()), *spec.command])
    if short and len(words) > COMMAND_WIDTH:
        words = words[: COMMAND_WIDTH - 1] + "…"
    return {
        "Name": one.name,
        "Image": spec.image,
        "Command": " ".join(words.split()) if short else words,
        "Ready": ready(one.recipe),
        "Size": _format.size(one.stored_bytes),
        "CreatedSince": f"{_format.ago(one.created)} ago",
        "State": "fresh" if one.fresh else "stale",
        "Snapshot": _format.digest(one.snapshot or "", short=short),
    }


def ready(recipe: Recipe) -> str:
    """What had to hold, in words."""
    import shlex

    wanted = []
    if recipe.ready_log:
        wanted.append(f"log {recipe.ready_log!r}")
    if recipe.ready_command:
        wanted.append(f"cmd {shlex.join(recipe.ready_command)}")
    if recipe.ready_after_s:
        wanted.append(f"after {recipe.ready_after_s:g}s")
    return ", ".join(wanted) or "started"
