"""Which of the runs that wait in a queue may begin. Pure: values, who waits and who is active, and one function that
plans. What a plan costs does not grow with how many wait.

A run is *active* from when it leaves the queue until it ends, asleep or not: a limit is one of work that was begun.
"""

from __future__ import annotations

import bisect
import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

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


def order(place: Place) -> tuple[int, int, str]:
    return place.order


IsFull = Callable[[str | None], bool]  # of a key


class Waiting:
    """Those that wait, in their order. Those with one key are a row: where nothing with that key may begin, it is
    passed over as one."""

    def __init__(self, places: Iterable[Place] = ()) -> None:
        self._rows: dict[str | None, list[Place]] = {}
        self._firsts: list[Place] = []  # of each row
        self._count = 0
        for place in places:
            self.add(place)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Place]:
        return self.beside(lambda key: False)

    def add(self, place: Place) -> None:
        row = self._rows.setdefault(place.key, [])
        before = row[0] if row else None
        bisect.insort(row, place, key=order)
        self._count += 1
        self._moved(before, row[0])

    def remove(self, place: Place) -> None:
        row = self._rows[place.key]
        before = row[0]
        del row[bisect.bisect_left(row, place.order, key=order)]
        self._count -= 1
        self._moved(before, row[0] if row else None)
        if not row:
            del self._rows[place.key]

    def _moved(self, before: Place | None, first: Place | None) -> None:
        """A row begins with another one."""
        if before is first:
            return
        if before is not None:
            del self._firsts[bisect.bisect_left(self._firsts, before.order, key=order)]
        if first is not None:
            bisect.insort(self._firsts, first, key=order)

    def clear(self) -> None:
        self._rows.clear()
        self._firsts.clear()
        self._count = 0

    def beside(self, is_full: IsFull) -> Iterator[Place]:
        """All but those whose key is full, also when it became so after the one before."""
        begun: list[tuple[tuple[int, int, str], int, list[Place]]] = []  # rows, by the next of each
        firsts = iter(self._firsts)
        first = next(firsts, None)
        while first is not None or begun:
            if first is None or (begun and begun[0][0] < first.order):
                _, at, row = heapq.heappop(begun)
            else:
                at, row, first = 0, self._rows[first.key], next(firsts, None)
            if is_full(row[at].key):
                continue
            yield row[at]
            if at + 1 < len(row):
                heapq.heappush(begun, (row[at + 1].order, at + 1, row))


class Active:
    """The runs that are active, and how many there are with each key."""

    def __init__(self, keys: Mapping[str, str | None] | None = None) -> None:
        """keys: by run."""
        self._keys = dict(keys or {})
        self._counts = Counter(key for key in self._keys.values() if key is not None)

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._keys

    def put(self, run_id: str, key: str | None) -> None:
        """Nothing where it is active."""
        if run_id not in self._keys:
            self._keys[run_id] = key
            if key is not None:
                self._counts[key] += 1

    def remove(self, run_id: str) -> None:
        """Nothing where it is not active."""
        key = self._keys.pop(run_id, None)
        if key is not None:
            self._counts[key] -= 1
            if not self._counts[key]:
                del self._counts[key]

    def clear(self) -> None:
        self._keys.clear()
        self._counts.clear()

    def count(self, key: str) -> int:
        return self._counts[key]


def plan(
    queue: Queue, waiting: Callable[[IsFull], Iterable[Place]], active: Active, begun: Sequence[float], now: float
) -> tuple[list[Place], float | None]:
    """Those that may begin now, and when the rate lets more begin (None: no time brings any).

    waiting: in their order, without those whose key is full (``Waiting.beside``). begun: when runs began, oldest first,
    at least in the last period.
    """
    if queue.paused:
        return [], None
    room = MOST if queue.concurrency is None else queue.concurrency - len(active)
    keys, limit = Counter[str](), queue.key_concurrency  # of those that are chosen

    def is_full(key: str | None) -> bool:
        return key is not None and limit is not None and active.count(key) + keys[key] >= limit

    recent = [at for at in begun if at > now - queue.period_s] if queue.rate is not None else []
    fresh = MOST if queue.rate is None else queue.rate - len(recent)
    chosen: list[Place] = []
    for place in waiting(is_full):
        if len(chosen) >= room:
            break
        if is_full(place.key):
            continue  # since it was taken from its line: those of several lines are merged
        if len(chosen) >= fresh:
            # The oldest that are in the way leave the period one by one.
            blocking = (recent + [now] * len(chosen))[-(queue.rate or 0)]
            return chosen, blocking + queue.period_s
        if place.key is not None:
            keys[place.key] += 1
        chosen.append(place)
    return chosen, None
