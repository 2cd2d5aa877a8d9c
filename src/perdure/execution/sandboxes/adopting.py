"""After a restart of the node: join a record with what lives. Adopt, roll back, finish, or say how it died."""

from __future__ import annotations

import asyncio
import logging
import time

from perdure.errors import PerdureError
from perdure.execution.guest.session import GuestSession
from perdure.execution.machine.remote import Launcher
from perdure.execution.sandboxes import feeding
from perdure.execution.sandboxes.life import READY_TIMEOUT_S, Life
from perdure.execution.sandboxes.machine import end_stray, why_gone
from perdure.execution.sandboxes.phases import Phases
from perdure.execution.sandboxes.resuming import refusal
from perdure.model import SandboxState as S

_log = logging.getLogger(__name__)


async def reconcile(life: Life, launcher: Launcher | None) -> None:
    """``launcher`` is None where none answers: nothing lives then. What each state means: see ``states``."""
    await asyncio.to_thread(life.folder.forget_unsaved)
    if life.state in (S.STARTING, S.RUNNING, S.PAUSED, S.SUSPENDING):
        await _adopt(life, launcher)
    elif launcher is not None:
        await end_stray(launcher, life.id)
    if life.state is S.RESUMING:
        life.happened(refusal(life.record))
    await asyncio.to_thread(life.folder.tidy, life.record)


async def _adopt(life: Life, launcher: Launcher | None) -> None:
    if launcher is None:
        life.exited("died", "host-lost", "found so when the node started", None)
        return
    try:
        keeper = await launcher.attach(life.id)
    except PerdureError as error:
        _log.warning("%s has no keeper: %s", life.id, error)
        life.exited("died", *(await why_gone(launcher, life.id)), None)
        await launcher.forget(life.id)
        return
    session = life.new_session()
    machine = life.hold(launcher, keeper, session)
    try:
        facts = await machine.request("stat")
        feeder = await feeding.again(
            life.rooms.store,
            life.record.restored,
            life.folder.machine(life.record.generation) / "memory.map",
            keeper,
            facts,
        )
        if feeder is not None:
            machine.feed(feeder)
            if life.record.populates:
                await feeding.populate(keeper)
        if life.state is S.PAUSED:
            if facts.get("state") != "paused":
                await machine.request("pause")
            life.emit("adopted")
            return  # its guest is met when it goes on
        if facts.get("state") == "paused":
            await machine.request("continue")
        guest = await machine.outlives(session.ready(READY_TIMEOUT_S))
        if guest.frozen:
            await machine.answered(life.wake(session), 0)
        await met(life, session)
    except (PerdureError, TimeoutError) as error:
        _log.warning("adoption of %s failed: %s", life.id, error)
        cause, detail = await why_gone(launcher, life.id) if machine.over else ("adoption-failed", str(error))
        await life.lost(cause, detail)
        return
    if life.state is S.STARTING:
        life.happened("started", started=time.time())
    elif life.state is S.SUSPENDING:
        life.happened("refused")
    life.emit("adopted")


async def met(life: Life, session: GuestSession) -> None:
    """The guest of a machine that was there before this node has said what runs in it."""
    main = life.find_main(session)
    await life.measure({}, Phases(), main)
    life.follow(main)
    for process in session.processes.values():
        if process.id != life.main_id:
            life.discard(process)
