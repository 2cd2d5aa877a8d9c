"""A clock that stands still until a test moves it: what waits for days is tested in no time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class FakeClock:
    """``runs.clock.Clock``. It begins at the host's time, so that deadlines fit what else has a date (entries have).

    Whoever sleeps on it, or has a timeout, goes on as soon as it was moved there. What they then do is waited for as
    everything is: by looking at the run.
    """

    def __init__(self) -> None:
        self._wall = time.time()
        self._monotonic = 0.0
        self._alarms: dict[asyncio.Timeout, float] = {}

    def time(self) -> float:
        return self._wall

    def monotonic(self) -> float:
        return self._monotonic

    @asynccontextmanager
    async def timeout_at(self, moment: float | None) -> AsyncIterator[asyncio.Timeout]:
        async with asyncio.timeout(None) as timeout:
            if moment is not None:
                self._alarms[timeout] = moment
                self._ring()
            try:
                yield timeout
            finally:
                self._alarms.pop(timeout, None)

    async def sleep_until(self, moment: float) -> None:
        try:
            async with self.timeout_at(moment):
                await asyncio.get_running_loop().create_future()  # that nobody ends
        except TimeoutError:
            pass  # it is time

    # -- what tests do

    def move(self, seconds: float) -> None:
        """So much time passes."""
        if seconds < 0:
            raise ValueError("time does not go back: `set` sets the wall clock")
        self._wall += seconds
        self._monotonic += seconds
        self._ring()

    def set(self, wall: float) -> None:
        """Somebody sets the host's clock: no time passes."""
        self._wall = wall

    def _ring(self) -> None:
        for timeout in [timeout for timeout, moment in self._alarms.items() if moment <= self._monotonic]:
            del self._alarms[timeout]
            timeout.reschedule(asyncio.get_running_loop().time())
