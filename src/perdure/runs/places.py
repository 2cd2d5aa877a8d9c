"""The queues of servers that share a database: a limit holds over all of them.

A *place* is a row (``kept``, kind ``place:QUEUE``): it comes in the transaction in which a run leaves its queue, and
goes in the one in which the run ends, whoever drives it by then. So places are what is active, whoever is lost.

A *line* is a row per queue (kind ``line``), which every begin replaces by compare-and-set, in the same transaction.
Whoever begins a run read the places after the line: had another one been added since, the line would be another. A
server that was stopped in between finds that, or that its lease is gone.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import msgspec

from perdure.context.leases import Leases
from perdure.context.log import Beside, ContextLog
from perdure.errors import Conflict, NotFound
from perdure.model import Frozen, RunState
from perdure.runs.clock import Clock
from perdure.runs.queues import Active, IsFull, Place, Queue, Waiting, order, plan
from perdure.runs.states import TERMINAL

LINE = "line"
TRIES = 20  # where another server is first each time
AGAIN_S = 0.2  # after those
LEFT_S = 5.0  # so long something is left to a run of another server whose turn it is
SOON_S, LATE_S = 0.05, 1.0  # pauses of the server whose run is the next: an end elsewhere tells nobody
GRAINS = 200  # moments that a line has of a period
AHEAD = 20  # runs of each server that the others know of


class Line(Frozen, frozen=True, kw_only=True):
    """What the servers know together of a queue."""

    begun: list[tuple[float, int]] = msgspec.field(default_factory=list)  # moments of a rate's last period: how many
    coming: dict[str, list[Place]] = msgspec.field(default_factory=dict)  # by server: the first that wait there


class Asked(Protocol):
    """Of a run's request: its queue and its key there."""

    @property
    def queue(self) -> str | None: ...

    @property
    def queue_key(self) -> str | None: ...


class Ready(Protocol):
    """A run that waits."""

    @property
    def driven(self) -> bool: ...

    async def begin(self, beside: Sequence[Beside]) -> None:
        """Leave the queue together with what is beside. Errors of the log; nothing where it does not wait any more."""
        ...


def kind(queue: str) -> str:
    """Of its places."""
    return f"place:{queue}"


def moved(run_id: str, request: Asked, before: RunState, to: RunState) -> list[Beside]:
    """What becomes of a run's place when it goes from one state to another."""
    if request.queue is None:
        return []
    if to in TERMINAL:
        return [Beside(kind=kind(request.queue), name=run_id, value=None)]
    if before is RunState.QUEUED or before in TERMINAL:  # a rewind from its end: it waits for no turn
        return [Beside(kind=kind(request.queue), name=run_id, value={"key": request.queue_key})]
    return []


class Places:
    """The turns of one server's runs among those of all."""

    def __init__(self, context: ContextLog, leases: Leases, clock: Clock) -> None:
        self._context = context
        self._leases = leases
        self._clock = clock
        self._left: dict[str, dict[str, float]] = {}  # by queue: runs of others, and since when it is their turn
        self._still: dict[str, tuple[int, float]] = {}  # by queue: the line's version, and the pause that it stood for

    async def active(self, name: str) -> Active:
        """The runs of all servers."""
        return Active({kept.name: kept.value["key"] for kept in await self._context.kept(kind(name))})

    async def turn(
        self,
        name: str,
        read: Callable[[], Awaitable[Queue | None]],
        waiting: Waiting,
        runs: Mapping[str, Ready],
    ) -> float | None:
        """Begin the runs whose turn it is. In how many seconds to look again (None: when something happens here, or
        with the next beat)."""
        for _ in range(TRIES):
            try:
                return await self._turn(name, read, waiting, runs)
            except (Conflict, NotFound):  # another server was first: what is known now is newer
                continue
        return AGAIN_S

    async def touch(self, name: str) -> None:
        """The queue was changed: nothing begins any more by what was read of it before."""
        while True:
            version, line = await self._line(name)
            try:
                await self._context.keep(LINE, name, msgspec.to_builtins(line), expected_version=version)
                return
            except (Conflict, NotFound):
                continue

    async def _line(self, name: str) -> tuple[int, Line]:
        found = await self._context.kept(LINE, name)
        return (found[0].version, msgspec.convert(found[0].value, Line)) if found else (0, Line())

    async def _turn(
        self,
        name: str,
        read: Callable[[], Awaitable[Queue | None]],
        waiting: Waiting,
        runs: Mapping[str, Ready],
    ) -> float | None:
        version, line = await self._line(name)  # first: see above
        me = self._leases.server
        if not waiting and me not in line.coming:
            return None
        queue, active = await read(), await self.active(name)
        if queue is None:
            return None
        now = await self._leases.time() if queue.rate is not None else 0.0
        begun = [(at, count) for at, count in line.begun if queue.rate is not None and at > now - queue.period_s]
        unheard = [run_id for run_id in active if run_id in runs]  # they began, and the answer was lost
        for run_id in unheard:
            await runs[run_id].begin(())
        others = self._others(name, line, active, runs)
        theirs = {place.run_id: place for places in others.values() for place in places}  # one that moved is at two

        def beside(is_full: IsFull) -> Iterator[Place]:
            elsewhere = Waiting(theirs.values()).beside(is_full)
            return heapq.merge(elsewhere, _ready(waiting.beside(is_full), runs), key=order)

        chosen, again_at = plan(
            queue,
            beside,
            active,
            [at for at, count in begun for _ in range(count)],
            now,
        )
        mine = [place for place in chosen if place.run_id in runs]
        taken = {place.run_id for place in chosen}
        self._leave(name, taken.difference(runs))
        firsts = _firsts(queue, waiting, runs, taken)
        coming = {**others, **({me: firsts} if firsts else {})}
        begins = []
        for number, place in enumerate(mine):
            if queue.rate is not None:
                begun = _counted(begun, now, queue.period_s if queue.rate > GRAINS else 0.0)
            value = msgspec.to_builtins(Line(begun=begun, coming=coming))
            after = Beside(kind=LINE, name=name, value=value, expected_version=version + number)
            begins.append(runs[place.run_id].begin([after]))
        for result in await asyncio.gather(*begins, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result
        if not mine and coming != line.coming:
            value = msgspec.to_builtins(Line(begun=begun, coming=coming))
            await self._context.keep(LINE, name, value, expected_version=version)
        if again_at is not None:
            return max(again_at - now, SOON_S)
        if not _has_next(queue, firsts, theirs.values()):
            return None
        return self._pause_s(name, version)

    def _others(self, name: str, line: Line, active: Active, runs: Mapping[str, Ready]) -> dict[str, list[Place]]:
        """The first that wait at each other server. Where one did not begin when it could, all of that server are
        passed over: it is lost, it seems, or busy; it says so anew if it is not."""
        now, left, found = self._clock.monotonic(), self._left.get(name, {}), dict[str, list[Place]]()
        for server, places in line.coming.items():
            waiting = [place for place in places if place.run_id not in runs and place.run_id not in active]
            is_late = any(now - left.get(place.run_id, now) >= LEFT_S for place in waiting)
            if waiting and not is_late and server != self._leases.server:
                found[server] = waiting
        return found

    def _leave(self, name: str, others: Iterable[str]) -> None:
        before, now = self._left.get(name, {}), self._clock.monotonic()
        self._left[name] = {run_id: before.get(run_id, now) for run_id in others}

    def _pause_s(self, name: str, version: int) -> float:
        """Longer and longer while nothing begins anywhere."""
        before, pause_s = self._still.get(name, (version, 0.0))
        pause_s = min(2 * pause_s, LATE_S) if before == version and pause_s else SOON_S
        self._still[name] = version, pause_s
        return pause_s


def _ready(waiting: Iterable[Place], runs: Mapping[str, Ready]) -> Iterator[Place]:
    """Those that somebody drives: others are being made, or taken over."""
    return (place for place in waiting if runs[place.run_id].driven)


def _firsts(queue: Queue, waiting: Waiting, runs: Mapping[str, Ready], taken: Container[str]) -> list[Place]:
    """Those that the others leave room for: of each key as many as may be active, whatever is active now."""
    found, keys = list[Place](), Counter[str | None]()

    def is_full(key: str | None) -> bool:
        return key is not None and queue.key_concurrency is not None and keys[key] >= queue.key_concurrency

    for place in _ready(waiting.beside(is_full), runs):
        if len(found) == AHEAD:
            break
        if place.run_id not in taken:
            found.append(place)
            keys[place.key] += 1
    return found


def _has_next(queue: Queue, firsts: Iterable[Place], others: Iterable[Place]) -> bool:
    """Whether one of these may be the next to begin: of all, or, as any key may have room again, with its key."""
    best: dict[str | None, Place] = {}
    for place in others:
        key = None if queue.key_concurrency is None else place.key
        best[key] = min(place, best.get(key, place), key=order)
    mine = ((place, best.get(None if queue.key_concurrency is None else place.key)) for place in firsts)
    return any(other is None or place.order < other.order for place, other in mine)


def _counted(begun: list[tuple[float, int]], now: float, period_s: float) -> list[tuple[float, int]]:
    """One more. Of many in a period the moments are rounded up to grains of it (0: they are not), so that a line
    stays short; a run counts for a grain longer then."""
    grain_s = period_s / GRAINS
    at = math.ceil(now / grain_s) * grain_s if grain_s else now
    if begun and begun[-1][0] >= at:
        return [*begun[:-1], (begun[-1][0], begun[-1][1] + 1)]
    return [*begun, (at, 1)]
