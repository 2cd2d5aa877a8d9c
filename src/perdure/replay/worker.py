"""What a worker does: reads its run's log, then lives its agent's function through it and beyond."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from perdure.agent import calls, run
from perdure.replay.book import Book, Line
from perdure.replay.door import Reader, ReplayDoor
from perdure.replay.outlet import Outlet
from perdure.replay.wire import Wire


def live(order: dict[str, Any], output: int) -> None:
    """Run the agent of an order (see ``zygote``) in this process, and end it with SystemExit. ``output``: the
    descriptor that it prints to."""
    os.setsid()  # whatever its steps start ends with it
    for number in (1, 2):
        os.dup2(output, number)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for spare in {output, nothing} - {0, 1, 2}:
        os.close(spare)
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["env"])
    if order["packages"]:
        use(order["packages"])
    path, _, name = order["agent"].rpartition(":")
    sys.argv = [path]
    endpoint = order["calls"]
    wire = Wire(endpoint["url"], endpoint["run_id"], endpoint["epoch"], endpoint["token"])
    book = Book(history(wire))
    outlet = Outlet(is_silent=order["silent"] and not book.is_heard)
    try:
        status = run.live(path, name, ReplayDoor(Reader(wire, book, outlet)))
    except BaseException:
        outlet.open()  # what it says of this is new
        raise
    finally:
        outlet.flush()
    raise SystemExit(status)


def use(folder: str) -> None:
    """Import from the folder first. What is imported here already of packages that it has is forgotten, so that the
    agent gets its own: the SDK keeps what it has of the server's."""
    sys.path.insert(0, folder)
    names = {path.name.partition(".")[0] for path in Path(folder).iterdir()} - sys.stdlib_module_names - {"perdure"}
    for name in [name for name in sys.modules if name.partition(".")[0] in names]:
        del sys.modules[name]


def history(wire: Wire) -> list[Line]:
    """All that the log has of the run's calls."""
    lines: list[Line] = []
    after: int | None = 0
    while after is not None:
        content = wire.ask("main", 0, f"{calls.BASE}history", b'{"after": %d}' % after)
        page = calls.answer(*content)
        lines += page["lines"]
        after = page["next"]
    return lines
