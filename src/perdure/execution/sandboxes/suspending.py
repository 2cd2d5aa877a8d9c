"""Freeze, capture, pack; then end the machine, which has not run since. Refused at any step, it goes on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path

from perdure.errors import MachineFailed, PerdureError
from perdure.execution.guest.session import GuestSession
from perdure.execution.sandboxes import capturing, disk, keptdisks
from perdure.execution.sandboxes.life import Life
from perdure.execution.sandboxes.machine import Machine, why_gone
from perdure.execution.sandboxes.phases import Phases
from perdure.execution.snapshots import diskchanges
from perdure.execution.snapshots.diskchanges import Changes
from perdure.formats.diskindex import DiskIndex
from perdure.formats.manifest import Snapshot
from perdure.model import LogPosition, SnapshotInfo
from perdure.model import SandboxState as S

WAKE_S = 5.0  # then a sandbox counts as going on, also where its guest has not said so

_log = logging.getLogger(__name__)


async def suspend(life: Life, position: LogPosition | None, reason: str = "") -> SnapshotInfo:
    """The machine stays paused, not ended, until the snapshot is durable and recorded: so nothing can be lost.

    reason: what the event says of why.
    """
    life.check("suspend")
    async with life.rooms.ground.captures:
        return await _suspend(life, position, reason)


async def _suspend(life: Life, position: LogPosition | None, reason: str) -> SnapshotInfo:
    phases = Phases()
    await asyncio.to_thread(disk.admit, life.rooms.home, life.rooms.home.store, 0, "a suspend")
    parent = await capturing.parent_of(life)
    overlay, index = life.folder.overlay(life.record.generation), await capturing.index_of(life)
    collector = str((await life.rooms.ground.assets()).collector)
    machine, session = life.need_machine(), life.need_session()
    kind = "full" if life.record.full_next else "diff"
    # until it is packed, the next capture is a full one: a lost diff cannot be taken again
    life.move("suspend", full_next=True)
    snapshot: Snapshot | None = None
    looking: asyncio.Task[Changes] | None = None
    try:
        quiesced = await capturing.quiesced(life, machine, session)
        phases.end("quiesce")
        folder, still = life.folder.new_capture(), asyncio.Event()
        looking = asyncio.create_task(_changes(life, overlay, index, still))
        answer = await machine.request("capture", kind=kind, collector=collector)
        still.set()
        phases.end("capture")
        captured = capturing.Captured(
            folder,
            float(answer["pause_s"]),
            overlay,  # it stands still as the machine does
            lambda: looking,
            capturing.origin_of(life, await capturing.on_disk(life, life.rooms.volumes.mark, life.record.spec), answer),
            quiesced.memory_use,
        )
        snapshot = await capturing.store(life, captured, parent, position)
        phases.end("store")
        info, snapshots = capturing.kept(life, snapshot, phases.finish())
        life.move("suspended", parent=info.digest, snapshots=snapshots, full_next=False, has_disk=False)
    except BaseException as error:
        if looking is not None:
            looking.cancel()
        await go_on(life, machine, session, error)
        if snapshot is not None:  # stored, but not written down
            await asyncio.to_thread(life.rooms.store.remove, [snapshot.digest])
        raise
    life.session_parent = info.digest
    _log.info("%s suspended: %s, %d bytes", life.id, phases, info.stored_bytes)
    await machine.end()
    life.machine = None
    await asyncio.to_thread(_keep_disk, life)
    why = {"reason": reason} if reason else {}
    life.emit("suspended", snapshot=info.digest, stored_bytes=info.stored_bytes, **why)
    return info


async def _changes(life: Life, overlay: Path, index: DiskIndex | None, still: asyncio.Event) -> Changes:
    """Found while the machine is captured; again, if it wrote before it stood ``still``."""
    found = await capturing.on_disk(life, diskchanges.changes, overlay, index)
    await still.wait()
    if await capturing.on_disk(life, diskchanges.stamp_of, overlay) != found.stamp:
        found = await capturing.on_disk(life, diskchanges.changes, overlay, index)
    return found


def _keep_disk(life: Life) -> None:
    if life.record.recipe is None:  # the template of a workload is forked, not resumed
        life.folder.keep_disk(life.record.generation)
    life.folder.tidy(life.record)
    sandboxes = life.rooms.home.sandboxes
    keptdisks.trim(sandboxes, life.rooms.disks_bytes, floor_bytes=keptdisks.floor_of(sandboxes))


async def go_on(life: Life, machine: Machine, session: GuestSession, error: BaseException) -> None:
    """After a capture that failed: the machine runs, the workload is awake; or the sandbox is lost, and its record says
    why."""
    _log.warning("capture of %s failed: %r", life.id, error)
    await asyncio.to_thread(life.folder.forget_captures)
    try:
        if machine.over:
            raise MachineFailed("its machine died")
        if (await machine.request("stat")).get("state") == "paused":
            await machine.request("continue")
        waking = asyncio.ensure_future(machine.outlives(life.wake(session)))
        if (await asyncio.wait({waking}, timeout=WAKE_S))[0]:
            waking.result()
        else:  # it is silent, and may freeze its workload yet: so it is told to wake for as long as that takes
            life.spawn_task(_woken(life, machine, session, waking))
    except (PerdureError, TimeoutError) as reason:
        cause, detail = await why_gone(await life.rooms.ground.launcher(), life.id)
        _log.warning("%s cannot go on: %s", life.id, reason)
        await life.lost(cause, detail)
        return
    if life.state is S.SUSPENDING:
        life.happened("refused")


async def _woken(life: Life, machine: Machine, session: GuestSession, waking: asyncio.Future[None]) -> None:
    with contextlib.suppress(PerdureError):  # it died, which others see and say
        await waking
        await machine.outlives(life.wake(session))  # the clock that the first one brought was old by then
