"""Sandboxes that nobody uses are put to sleep: those with ``suspend_after_s``, by it.

Idle is a sandbox that nobody has used for that long (``sandboxes.activity``), that wrote nothing, and whose machine had
less than IDLE_CPU of one processor's time in each of the looks within it: what its guest does by itself counts as use.
Nothing of this is kept over a restart of the node: the next one begins to count anew.
"""

from __future__ import annotations

import asyncio
import logging
import time

from perdure.errors import IllegalTransition, PerdureError
from perdure.execution.sandboxes.sandbox import Sandbox
from perdure.execution.sandboxes.sandboxes import Sandboxes
from perdure.model import SandboxState

IDLE_CPU = 0.05
LOOKS = 4  # within the time; each asks the keeper once
LOOK_S = (0.1, 30.0)  # at least, at most
BEGINS = ("sandbox.started", "sandbox.resumed", "sandbox.adopted", "sandbox.unpaused")

_log = logging.getLogger(__name__)


class Idleness:
    """``run`` it as a task, for the node's whole life."""

    def __init__(self, sandboxes: Sandboxes) -> None:
        self._sandboxes = sandboxes
        self._watching: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """For ever."""
        happening = self._sandboxes.events.read(follow=True, since=time.time())
        try:
            for sandbox in self._sandboxes.all():
                self._watch(sandbox)
            async for event in happening:
                if event.kind in BEGINS:
                    for sandbox in self._sandboxes.all():
                        if sandbox.id == event.sandbox_id:
                            self._watch(sandbox)
        finally:
            for task in self._watching.values():
                task.cancel()

    def _watch(self, sandbox: Sandbox) -> None:
        if sandbox.record.spec.suspend_after_s > 0 and sandbox.id not in self._watching:
            task = asyncio.create_task(watch(sandbox))
            self._watching[sandbox.id] = task
            task.add_done_callback(lambda done: self._over(sandbox, done))

    def _over(self, sandbox: Sandbox, task: asyncio.Task[None]) -> None:
        del self._watching[sandbox.id]
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            _log.error("%s is not watched any more", sandbox.id, exc_info=error)
        elif sandbox.state is SandboxState.RUNNING and not sandbox.dozing:
            self._watch(sandbox)  # it was woken in this moment


async def watch(sandbox: Sandbox) -> None:
    """While it runs; suspend it as soon as it has been idle for so long."""
    after_s = sandbox.record.spec.suspend_after_s
    look_s = min(max(after_s / LOOKS, LOOK_S[0]), LOOK_S[1])
    sandbox.activity.touched()
    seen = await _use(sandbox)
    while sandbox.state is SandboxState.RUNNING:
        idle_s = sandbox.activity.idle_s
        await asyncio.sleep(look_s if idle_s == 0 else min(look_s, max(after_s - idle_s, LOOK_S[0])))
        if sandbox.activity.is_busy:
            continue
        before, seen = seen, await _use(sandbox)
        if seen[0] != before[0] or seen[1] - before[1] > IDLE_CPU * (seen[2] - before[2]):
            sandbox.activity.touched()
        elif sandbox.activity.idle_s >= after_s:
            try:
                if await sandbox.suspend_idle(after_s) is not None:
                    _log.info("%s was idle for %g s", sandbox.id, after_s)
            except IllegalTransition:
                pass  # somebody else moved it
            except (PerdureError, OSError, TimeoutError) as error:
                _log.warning("%s is idle, and cannot be suspended: %s", sandbox.id, error)
                sandbox.activity.touched()  # again after as long


async def _use(sandbox: Sandbox) -> tuple[int, float, float]:
    """(bytes that it wrote, seconds of CPU time that its machine had, when)."""
    try:
        facts = await sandbox.need_machine().request("stat")
        cpu_s = float(facts.get("usage", {}).get("cpu_s", 0.0))
    except (PerdureError, TimeoutError):
        cpu_s = 0.0  # it died, or ends, which others see
    return sandbox.log.size, cpu_s, time.monotonic()
