"""A sandbox that stands still in memory: its workload is frozen in the guest, and then no processor of it runs.

Frozen first, so that guestd can be asked something in between (files, processes) while nothing of the workload runs.
What was written is on its disk by then, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from perdure.errors import GuestFailed, PerdureError
from perdure.execution.sandboxes.adopting import met
from perdure.execution.sandboxes.life import READY_TIMEOUT_S, Life
from perdure.model import SandboxState as S

FREEZE_BUDGET_S = 2.0
FREEZE_LIMIT_S = 5.0  # for a guest that does not answer: its processors stand still anyway

_log = logging.getLogger(__name__)


async def pause(life: Life) -> None:
    """Raises IllegalTransition, MachineFailed."""
    life.check("pause")
    await _still(life)
    try:
        life.move("pause")
    except BaseException:
        await life.let_answer()
        life.spawn_task(_awake(life))
        raise
    life.emit("paused")


async def unpause(life: Life) -> None:
    """Its clock is right before anything of it runs. Raises IllegalTransition, MachineFailed; it is paused then."""
    life.check("unpause")
    try:
        await let_answer(life)
        await life.need_machine().answered(life.wake(life.need_session()), 0)
        life.move("unpause")
    except BaseException:
        await again(life)
        raise
    life.emit("unpaused")


async def let_answer(life: Life) -> None:
    """Of one that is paused: guestd answers, the workload stays frozen. Raises MachineFailed, GuestFailed; it may run
    then."""
    machine, session = life.need_machine(), life.need_session()
    await life.let_answer()
    try:
        await machine.outlives(session.ready(READY_TIMEOUT_S))
    except TimeoutError:
        raise GuestFailed(f"the guest of sandbox {life.name} does not answer") from None
    if life.main is None:  # it was paused before this node was there
        await met(life, session)


async def again(life: Life) -> None:
    """Back to where ``pause`` left it, whatever it does; a machine that cannot is dead, and others see and say that."""
    with contextlib.suppress(PerdureError):
        if life.state is S.RUNNING:
            await pause(life)
        elif life.state is S.PAUSED:
            await _still(life)


async def _still(life: Life) -> None:
    machine, session = life.need_machine(), life.session
    if session is not None and session.connected:
        try:
            async with asyncio.timeout(FREEZE_LIMIT_S):
                await machine.outlives(session.quiesce(FREEZE_BUDGET_S))
        except TimeoutError:
            _log.warning("%s is paused, although its guest does not answer", life.id)
    if (await machine.request("stat")).get("state") != "paused":
        await machine.request("pause")


async def _awake(life: Life) -> None:
    with contextlib.suppress(PerdureError):
        await life.wake(life.need_session())
