"""A snapshot of a sandbox that runs on: its vCPUs stand still only while memory and disk are copied."""

from __future__ import annotations

import asyncio
import logging
import time

from perdure.errors import Conflict
from perdure.execution.sandboxes import capturing, disk, mounts
from perdure.execution.sandboxes.life import Life
from perdure.execution.sandboxes.phases import Phases
from perdure.execution.sandboxes.suspending import go_on
from perdure.formats.manifest import Snapshot
from perdure.model import LogPosition, SnapshotInfo

_log = logging.getLogger(__name__)


async def checkpoint(life: Life, position: LogPosition | None) -> SnapshotInfo:
    """The sandbox stays running throughout; refused at any step, it goes on, and nothing is stored."""
    life.check("checkpoint")
    if written := mounts.writes_volumes(life.record.spec):
        raise Conflict(
            f"sandbox {life.name} writes volume {written[0]}, which no snapshot holds: from a checkpoint or fork it "
            "could not go on",
            hint="Suspend it instead, or mount its volumes read-only (:ro).",
        )
    async with life.rooms.ground.captures:
        return await _checkpoint(life, position)


async def _checkpoint(life: Life, position: LogPosition | None) -> SnapshotInfo:
    phases = Phases()
    await asyncio.to_thread(disk.admit, life.rooms.home, life.rooms.home.store, 0, "a checkpoint")
    parent = await capturing.parent_of(life)
    overlay, index = life.folder.overlay(life.record.generation), await capturing.index_of(life)
    collector = str((await life.rooms.ground.assets()).collector)
    machine, session = life.need_machine(), life.need_running()
    kind = "full" if life.record.full_next else "diff"
    life.save(full_next=True)  # until it is packed: a lost diff cannot be taken again
    snapshot: Snapshot | None = None
    try:
        folder = life.folder.new_capture()
        target = folder / "overlay"
        quiesced = await capturing.quiesced(life, machine, session)
        phases.end("quiesce")
        copy = disk.Copy(overlay, target, index)
        await capturing.on_disk(life, copy.begin)
        phases.end("copy")
        still = time.monotonic()
        await machine.request("pause")
        answer = await machine.request("capture", kind=kind, collector=collector)
        await capturing.on_disk(life, copy.finish)
        marks = await capturing.on_disk(life, life.rooms.volumes.mark, life.record.spec)
        origin = capturing.origin_of(life, marks, answer)
        await machine.request("continue")
        captured = capturing.Captured(
            folder,
            time.monotonic() - still,
            target,
            lambda: capturing.on_disk(life, copy.changes),
            origin,
            quiesced.memory_use,
        )
        phases.end("capture")
        await machine.answered(life.wake(session), 0)
        phases.end("wake")
        snapshot = await capturing.store(life, captured, parent, position)
        phases.end("store")
        info, snapshots = capturing.kept(life, snapshot, phases.finish())
        life.save(parent=info.digest, snapshots=snapshots, full_next=False)
    except BaseException as error:
        await go_on(life, machine, session, error)
        if snapshot is not None:  # stored, but not written down
            await asyncio.to_thread(life.rooms.store.remove, [snapshot.digest])
        raise
    await asyncio.to_thread(life.folder.forget_captures)
    _log.info("%s checkpointed: %s; still for %.3f s", life.id, phases, info.pause_s)
    life.emit("checkpointed", snapshot=info.digest, stored_bytes=info.stored_bytes)
    return info
