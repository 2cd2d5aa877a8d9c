"""Starts sandboxes again that have ended, as their ``--restart`` says (``execution.sandboxes.restarting``)."""

from __future__ import annotations

import asyncio
import logging
import time

from perdure.errors import NotFound, PerdureError
from perdure.execution.sandboxes.restarting import WISHED, delay_s, due, in_a_row
from perdure.execution.sandboxes.sandbox import Sandbox
from perdure.execution.sandboxes.sandboxes import Sandboxes

_log = logging.getLogger(__name__)


class Restarts:
    """``run`` it as a task, for the node's whole life."""

    def __init__(self, sandboxes: Sandboxes) -> None:
        self._sandboxes = sandboxes
        self._waiting: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """For ever."""
        happening = self._sandboxes.events.read(follow=True, since=time.time())
        try:
            for sandbox in self._sandboxes.all():
                if due(sandbox.record, node_starts=True):
                    self._again(sandbox, is_first=True)
            async for event in happening:
                if event.kind == "sandbox.exited":
                    for sandbox in self._sandboxes.all():
                        if sandbox.id == event.sandbox_id and due(sandbox.record):
                            self._again(sandbox)
        finally:
            for task in self._waiting.values():
                task.cancel()

    def _again(self, sandbox: Sandbox, *, is_first: bool = False) -> None:
        if sandbox.id not in self._waiting:
            task = asyncio.create_task(self._start(sandbox, is_first=is_first))
            self._waiting[sandbox.id] = task
            task.add_done_callback(lambda done: self._over(sandbox, done))

    def _over(self, sandbox: Sandbox, task: asyncio.Task[None]) -> None:
        del self._waiting[sandbox.id]
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            _log.error("%s is not started again", sandbox.id, exc_info=error)
        elif due(sandbox.record):
            self._again(sandbox)  # it ran, and ended before this was over

    async def _start(self, sandbox: Sandbox, *, is_first: bool) -> None:
        wished = is_first and sandbox.record.cause in WISHED
        refused = 0  # in a row, before anything was begun: its record says nothing of these
        while wished or due(sandbox.record):
            record = sandbox.record
            restarts = 0 if wished else in_a_row(record)
            await asyncio.sleep(delay_s(restarts + refused))
            if not (wished or due(sandbox.record)):
                return  # it was stopped meanwhile, or started by somebody
            wished = False
            try:
                _log.info("%s is started again (%s), %d", sandbox.id, record.spec.restart, restarts + 1)
                await sandbox.start(restarts=restarts + 1)
            except NotFound:
                return  # it was removed
            except (PerdureError, OSError) as error:
                _log.warning("%s does not start again: %s", sandbox.id, error)
                refused = refused + 1 if sandbox.record.finished == record.finished else 0
            else:
                return
