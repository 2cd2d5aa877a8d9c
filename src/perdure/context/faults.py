"""A server that dies at a durable write, when it is asked to: for crash tests (``perdure.testing.crash``).

Every write of the control plane has a name, its *point*, made from what is written, so that no write can forget to
have one: the kinds of the entries in a transaction (``step.intent``, ``run.suspended`` …), ``row.WHAT`` for rows beside
them (``State.points``), ``file.NAME`` for files of the server. A transaction that holds several writes is at all their
points. ``context.points`` lists them.

    PERDURE_CRASH=POINT[:before|after][:N]    the process kills itself at the Nth (1) write of that name: just before it
                                              is committed, or just after, when nobody was told of it yet
    PERDURE_CRASH_POINTS=FILE                 the name of each point is added to FILE when it was committed
"""

from __future__ import annotations

import os
import signal
from collections.abc import Collection, Mapping
from pathlib import Path

from perdure.context.points import EVERY
from perdure.errors import InvalidValue

MOMENTS = ("before", "after")


class Faults:
    """Of one process. Who writes calls ``reach`` before and after it commits; unset, there is none to be called."""

    def __init__(self, point: str = "", moment: str = "before", count: int = 1, *, record: Path | None = None) -> None:
        self.point, self.moment = point, moment
        self._left = count
        self._record = record

    @staticmethod
    def wanted(environ: Mapping[str, str]) -> Faults | None:
        """What the environment asks for. InvalidValue."""
        asked, record = environ.get("PERDURE_CRASH", ""), environ.get("PERDURE_CRASH_POINTS", "")
        if not asked and not record:
            return None
        point, *more = asked.split(":")
        moment = more.pop(0) if more and not more[0].isdigit() else "before"
        count = int(more.pop(0)) if more and more[0].isdigit() else 1
        if more or moment not in MOMENTS or count < 1:
            hint = "It is POINT, POINT:before, POINT:after, or one of them with :N for the Nth time."
            raise InvalidValue(f"PERDURE_CRASH is {asked!r}", hint=hint)
        if asked and point not in EVERY:
            hint = f"Points are {', '.join(EVERY)} (docs/testing.md)."
            raise InvalidValue(f"PERDURE_CRASH is {asked!r}: no write has that name", hint=hint)
        return Faults(point, moment, count, record=Path(record) if record else None)

    def reach(self, moment: str, points: Collection[str]) -> None:
        """``points`` are about to be committed (before), or were (after). Does not return where it is to end."""
        if moment == self.moment and self.point in points:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        if self._record and moment == "after":
            with self._record.open("a") as file:
                file.write("".join(f"{point}\n" for point in sorted(points)))
