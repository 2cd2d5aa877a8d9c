"""Which of the runs that wait in a queue may begin. Pure: values, and one function that plans.

A run is *active* from when it leaves the queue until it ends, asleep or not: a limit is one of work that was begun.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from perdure.errors import InvalidValue
from perdure.model import Frozen

MOST = 1_000_000
LONGEST_S = 366 * 86400.0
PRIORITY_MAX = 1_000_000


class Queue(Frozen, frozen=True, kw_only=True):
    """One queue. None: no such limit."""

    name: str
    concurrency: int | None = None  # active runs at once
    key_concurrency: int | None = None  # of those with one ``queue_key``
    rate: int | None = None  # runs that begin in any ``period_s``
    period_s: float = 1.0
    paused: bool = False  # nothing begins
    created: float = 0.0

    def check(self) -> None:
        """Raises InvalidValue naming the field."""
        good = self.name.isprintable() and not set(self.name) & set("/ ?#")
        if not 0 < len(self.name) <= 100 or not good:
            hint = "It has 1 to 100 printable characters, and none of / ? # or space."
            raise InvalidValue(f"not the name of a queue: {self.name!r}", hint=hint)
        for field in ("concurrency", "key_concurrency", "rate"):
            limit = getattr(self, field)
            if limit is not None and not 1 <= limit <= MOST:
                hint = f"It is from 1 to {MOST}, or null for no limit; pause the queue to begin nothing."
                raise InvalidValue(f"{field} is {limit}", hint=hint)
        if not 0 < self.period_s <= LONGEST_S:
            raise InvalidValue(f"period_s is {self.period_s:g}", hint="It is a number of seconds above 0.")


class Place(Frozen, frozen=True, kw_only=True):
    """A run's place in its queue: higher ``priority`` first, then who came first."""

    run_id: str
    key: str | None
    priority: int
    number: int

    @property
    def order(self) -> tuple[int, int, str]:
        return -self.priority, self.number, self.run_id


def plan(
    queue: Queue, waiting: Iterable[Place], active: Mapping[str, str | None], begun: Sequence[float], now: float
) -> tuple[list[Place], float | None]:
    """Those that may begin now, and when the rate lets more begin (None: no time brings any).

    waiting: in their order. active: key by run. begun: when runs began, oldest first, at least in the last
    period.
    """
    if queue.paused:
        return [], None
    room = MOST if queue.concurrency is None else queue.concurrency - len(active)
    keys = Counter(key for key in active.values() if key is not None)
    recent = [at for at in begun if at > now - queue.period_s] if queue.rate is not None else []
    fresh = MOST if queue.rate is None else queue.rate - len(recent)
    chosen: list[Place] = []
    for place in waiting:
        if len(chosen) >= room:
            break
        if place.key is not None and queue.key_concurrency is not None and keys[place.key] >= queue.key_concurrency:
            continue
        if len(chosen) >= fresh:
            # The oldest that are in the way leave the period one by one.
            blocking = (recent + [now] * len(chosen))[-(queue.rate or 0)]
            return chosen, blocking + queue.period_s
        keys[place.key or ""] += place.key is not None
        chosen.append(place)
    return chosen, None
