"""One heap of deadlines for all runs, one task that sleeps until the next."""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Awaitable, Callable, Collection

from perdure.runs.clock import SYSTEM, Clock

_log = logging.getLogger(__name__)
# The wall clock may be set meanwhile, and loops sleep by the monotonic one: look again at least this often.
LOOK_S = 60.0
AGAIN_S = 1.0  # after a failure: the disk was full, perhaps, and will not be
SET_BACK_S = 1.0  # what a clock goes back by when it is set, and not only drawn
DEAD_MAX = 64  # deadlines that were taken out may lie in the heap, and as many as count

# when, by the clock as it is now; the deadline as it was given; run; what of it; a moment that was named
Entry = tuple[float, float, str, str, bool]


class Timers:
    """Calls ``fire(run_id, name, until)`` once the wall clock has passed a deadline, in a task of its own: a slow one
    holds up no other. ``until`` is the deadline, which is over also where a clock that was set back does not say so.
    Whoever is called looks whether there is something to be done: a deadline that is over is taken out (``forget``,
    ``retain``) to save room alone.

    A deadline is a moment that somebody named (``absolute``), which is the clock's business alone, or the end of a
    length of time: such a one does not take longer because the clock was set back. One that was set forward is like
    a host that slept: the time is over.
    """

    def __init__(self, fire: Callable[[str, str, float], Awaitable[None]], clock: Clock = SYSTEM) -> None:
        self._fire = fire
        self._clock = clock
        self._heap: list[Entry] = []
        self._due: dict[str, dict[str, float]] = {}  # by run and name: the newest deadline
        self._size = 0  # of them
        self._earlier = asyncio.Event()
        self._ahead_s = clock.time() - clock.monotonic()
        self._firing: set[asyncio.Task[None]] = set()

    def add(self, until: float, run_id: str, name: str, *, absolute: bool = False) -> None:
        """name: a wait's id, or whatever else is unique for all runs. Nothing happens where it has this deadline."""
        if self._due.get(run_id, {}).get(name) != until:
            self._put((until, until, run_id, name, absolute))

    def _put(self, entry: Entry) -> None:
        _, until, run_id, name, _ = entry
        due = self._due.setdefault(run_id, {})
        self._size += name not in due
        due[name] = until
        self._sweep()
        heapq.heappush(self._heap, entry)
        if self._heap[0][3] == name:
            self._earlier.set()

    def __len__(self) -> int:
        return self._size

    def of(self, run_id: str) -> int:
        """How many deadlines a run has."""
        return len(self._due.get(run_id, ()))

    def retain(self, run_id: str, names: Collection[str]) -> None:
        """What else the run had deadlines of is over."""
        due = self._due.get(run_id, {})
        for name in due.keys() - set(names):
            self._remove(run_id, name)
        self._sweep()

    def forget(self, run_id: str) -> None:
        """The run has ended."""
        self.retain(run_id, ())

    def let_go(self) -> None:
        """No run is ours any more."""
        for run_id in [run_id for run_id in self._due if run_id]:
            self.forget(run_id)

    def _remove(self, run_id: str, name: str) -> None:
        due = self._due[run_id]
        del due[name]
        self._size -= 1
        if not due:
            del self._due[run_id]

    def _counts(self, entry: Entry) -> bool:
        """Whether it is the newest deadline of what it is of, and was not taken out."""
        _, until, run_id, name, _ = entry
        return self._due.get(run_id, {}).get(name) == until

    def _sweep(self) -> None:
        """Once most of the heap is of no use: so it costs little for each deadline."""
        if len(self._heap) > 2 * self._size + DEAD_MAX:
            self._heap = [entry for entry in self._heap if self._counts(entry)]
            heapq.heapify(self._heap)

    async def run(self) -> None:
        """Until it is cancelled."""
        try:
            while True:
                self._earlier.clear()
                self._look()
                pause_s = min(self._heap[0][0] - self._clock.time(), LOOK_S) if self._heap else LOOK_S
                try:
                    async with self._clock.timeout_at(self._clock.monotonic() + pause_s):
                        await self._earlier.wait()
                except TimeoutError:
                    pass  # the next deadline is near, or it is time to look at the clock
        finally:
            for task in self._firing:
                task.cancel()
            await asyncio.gather(*self._firing, return_exceptions=True)

    def _look(self) -> None:
        """Fire what is due."""
        ahead_s = self._clock.time() - self._clock.monotonic()
        if ahead_s < self._ahead_s - SET_BACK_S:
            back_s = self._ahead_s - ahead_s
            self._heap = [(e[0] if e[4] else e[0] - back_s, *e[1:]) for e in self._heap]
            heapq.heapify(self._heap)
        self._ahead_s = ahead_s
        while self._heap and self._heap[0][0] <= self._clock.time():
            entry = heapq.heappop(self._heap)
            if self._counts(entry):
                self._remove(*entry[2:4])
                task = asyncio.create_task(self._pass(entry), name=f"deadline-{entry[2]}")
                self._firing.add(task)
                task.add_done_callback(self._firing.discard)

    async def _pass(self, entry: Entry) -> None:
        _, until, run_id, name, absolute = entry
        try:
            await self._fire(run_id, name, until)
        except Exception as error:  # of one run: the others' deadlines pass all the same
            _log.error("deadline %s of run %s: %r; tried again", name, run_id, error)
            if name not in self._due.get(run_id, {}):  # else it has another one since
                self._put((self._clock.time() + AGAIN_S, until, run_id, name, absolute))
