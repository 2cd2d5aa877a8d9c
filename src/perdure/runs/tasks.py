"""Tasks of an engine: none of them ends unseen, and all end with it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from perdure.runs.run import Run

log = logging.getLogger(__name__)
Result = TypeVar("Result")


class Tasks:
    """``close`` cancels them."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run it by itself."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and task.exception() is not None:
                log.error("%s ended: %r", name, task.exception(), exc_info=task.exception())

        task.add_done_callback(ended)
        return task

    async def to_its_end(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Even where the caller goes away meanwhile: what was made has to be moved along."""
        task = asyncio.create_task(work)
        self._tasks.add(task)

        def ended(task: asyncio.Task[Result]) -> None:
            self._tasks.discard(task)
            if not task.cancelled():
                task.exception()  # seen: the caller has it, or does not want to hear of it

        task.add_done_callback(ended)
        return await asyncio.shield(task)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def unless(run: Run, is_over: Callable[[], bool], work: Coroutine[Any, Any, Result]) -> Result | None:
    """What it gives; None: it was given up, as by the run nobody wants it any more. LeaseLost."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda _: run.notify())
    try:
        await run.until(lambda: task.done() or is_over())
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
    return None if task.cancelled() else task.result()
