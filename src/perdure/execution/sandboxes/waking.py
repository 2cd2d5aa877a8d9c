"""One place that sees to it that a sandbox runs, for whoever wants to use it now."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from perdure.errors import Conflict, IllegalTransition
from perdure.host.progress import Progress
from perdure.model import SandboxState as S
from perdure.model import WakeReason

if TYPE_CHECKING:
    from perdure.execution.sandboxes.sandbox import Sandbox

_ON_ITS_WAY = (S.SUSPENDING, S.RESUMING)  # to be suspended, or to run


async def awake(sandbox: Sandbox, reason: WakeReason, progress: Progress) -> None:
    """See ``Sandbox.awake``. All who come meanwhile wait for one resume, and get its error; none of them who leaves
    ends it."""
    while sandbox.state is not S.RUNNING or sandbox.dozing:
        if not is_asleep(sandbox):
            sandbox.need_running()
        if not may_wake(sandbox, reason):
            raise _refusal(sandbox, reason)
        if sandbox.waking is None:
            sandbox.waking = asyncio.create_task(_wake(sandbox, reason, progress))
            sandbox.waking.add_done_callback(lambda _: _over(sandbox))
        await asyncio.shield(sandbox.waking)


def _over(sandbox: Sandbox) -> None:
    task, sandbox.waking = sandbox.waking, None
    if task is not None and not task.cancelled():
        task.exception()  # where all who wanted it have left, nobody else looks


async def _wake(sandbox: Sandbox, reason: WakeReason, progress: Progress) -> None:
    async with sandbox.moving:
        pass  # whoever moves it just now is done; what they left it as is looked at now
    if sandbox.state is S.SUSPENDED:
        with contextlib.suppress(IllegalTransition):  # somebody else was quicker: what that led to is looked at next
            await sandbox.resume(progress=progress, reason=str(reason))


def is_asleep(sandbox: Sandbox) -> bool:
    """Whether it is suspended, or on its way to or from that."""
    return sandbox.dozing or sandbox.state is S.SUSPENDED or sandbox.state in _ON_ITS_WAY


def may_wake(sandbox: Sandbox, reason: WakeReason) -> bool:
    """A durable run's sandbox is woken by the server alone: what its calls are answered with changes at each resume."""
    return sandbox.record.calls is None and reason in sandbox.record.spec.wake_on


def _refusal(sandbox: Sandbox, reason: WakeReason) -> Conflict:
    if (calls := sandbox.record.calls) is not None:
        hint = f"It belongs to run {calls.run_id}, which wakes it when it goes on: perdure status {calls.run_id}"
    else:
        hint = f"Its --wake-on has no {reason}. Go on with it: fcrun resume {sandbox.name}"
    return Conflict(f"sandbox {sandbox.name} is {sandbox.state}, not running", hint=hint)
