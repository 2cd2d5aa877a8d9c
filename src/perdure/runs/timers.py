"""One heap of deadlines for all runs, one task that sleeps until the next."""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Awaitable, Callable

from perdure.runs.clock import SYSTEM, Clock

_log = logging.getLogger(__name__)
# The wall clock may be set meanwhile, and loops sleep by the monotonic one: look again at least this often.
LOOK_S = 60.0
AGAIN_S = 1.0  # after a failure: the disk was full, perhaps, and will not be


class Timers:
    """Calls ``fire(run_id, wait_id)`` once the wall clock has passed a deadline. Deadlines are never taken out: whoever
    is called looks whether the wait is still open."""

    def __init__(self, fire: Callable[[str, str], Awaitable[None]], clock: Clock = SYSTEM) -> None:
        self._fire = fire
        self._clock = clock
        self._heap: list[tuple[float, str, str]] = []
        self._earlier = asyncio.Event()

    def add(self, until: float, run_id: str, wait_id: str) -> None:
        heapq.heappush(self._heap, (until, run_id, wait_id))
        if self._heap[0][2] == wait_id:
            self._earlier.set()

    async def run(self) -> None:
        while True:
            self._earlier.clear()
            while self._heap and self._heap[0][0] <= self._clock.time():
                _, run_id, wait_id = heapq.heappop(self._heap)
                try:
                    await self._fire(run_id, wait_id)
                except Exception as error:  # of one run: the others' deadlines pass all the same
                    _log.error("wait %s of run %s: %r; tried again", wait_id, run_id, error)
                    heapq.heappush(self._heap, (self._clock.time() + AGAIN_S, run_id, wait_id))
            pause_s = min(self._heap[0][0] - self._clock.time(), LOOK_S) if self._heap else None
            try:
                async with self._clock.timeout_at(None if pause_s is None else self._clock.monotonic() + pause_s):
                    await self._earlier.wait()
            except TimeoutError:
                pass  # the next deadline is near, or it is time to look at the clock
