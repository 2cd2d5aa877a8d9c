"""Where runs are: those in memory, which a driver moves along, and those on the shelf, which sleep and cost little.

A run on the shelf is an id here, its deadlines in the heap, and its log. Whoever wants it has it in hand
(``held``): it is taken down, read from the log, and put back when it sleeps and nobody has it any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from perdure.errors import LeaseLost
from perdure.runs.run import Run


class Shelf:
    """``take_down``: reads a run from the log, drives it, and puts it into ``live``."""

    def __init__(self, take_down: Callable[[str], Awaitable[None]]) -> None:
        self.live: dict[str, Run] = {}  # those that have not ended, or whose machine is not removed yet
        self._take_down = take_down
        self._asleep: set[str] = set()
        self._coming: dict[str, asyncio.Task[None]] = {}

    def put(self, run_id: str) -> None:
        """It sleeps: forget all but that it is there."""
        self.live.pop(run_id, None)
        self._asleep.add(run_id)

    def has(self, run_id: str) -> bool:
        """In memory, or asleep."""
        return run_id in self.live or run_id in self._asleep

    def __len__(self) -> int:
        return len(self.live) + len(self._asleep)

    async def let_go(self) -> list[Run]:
        """Nothing is here any more; those that were in memory."""
        await self.close()
        runs = list(self.live.values())
        self.live.clear()
        self._asleep.clear()
        for run in runs:
            run.let_go()
        return runs

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._asleep

    @asynccontextmanager
    async def held(self, run_id: str) -> AsyncIterator[Run | None]:
        """The run, while it is used; None: it has ended, and nothing is left of its machine."""
        while run_id not in self.live and run_id in self._asleep:
            await self._come(run_id)
        run = self.live.get(run_id)
        if run is None:
            yield None
            return
        with run.held():
            yield run

    async def _come(self, run_id: str) -> None:
        """One at a time, whoever asks; it comes also where who asked has gone away."""
        task = self._coming.get(run_id)
        if task is None:
            task = self._coming[run_id] = asyncio.create_task(self._fetch(run_id), name=f"shelf-{run_id}")
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            who = asyncio.current_task()
            if task.cancelled() and who is not None and not who.cancelling():  # it was let go: nobody ended who asked
                raise LeaseLost(f"run {run_id} is not this server's any more", hint="Ask again in a moment.") from None
            raise

    async def _fetch(self, run_id: str) -> None:
        try:
            await self._take_down(run_id)
            self._asleep.discard(run_id)
        finally:
            del self._coming[run_id]

    async def close(self) -> None:
        """Nobody is taken down any more."""
        coming = list(self._coming.values())
        for task in coming:
            task.cancel()
        await asyncio.gather(*coming, return_exceptions=True)
