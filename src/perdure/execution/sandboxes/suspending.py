"""Freeze, capture, pack; then end the machine, which has not run since. Refused at any step, it goes on."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from pathlib import Path
from typing import Any

from perdure.errors import MachineFailed, PerdureError, SnapshotInvalid, Unavailable
from perdure.execution.guest.session import GuestSession
from perdure.execution.sandboxes import disk
from perdure.execution.sandboxes.life import Life
from perdure.execution.sandboxes.machine import Machine, why_gone
from perdure.execution.sandboxes.record import KeptSnapshot, Record
from perdure.execution.snapshots import capture, templates
from perdure.execution.snapshots.store import Store
from perdure.execution.snapshots.templates import Template
from perdure.formats.logs import STDERR, STDOUT
from perdure.formats.manifest import Snapshot
from perdure.model import LogPosition, SnapshotInfo

QUIESCE_BUDGET_S = 2.0

_log = logging.getLogger(__name__)


async def suspend(life: Life, position: LogPosition | None) -> SnapshotInfo:
    """The machine stays paused, not ended, until the snapshot is durable and recorded: so nothing can be lost."""
    life.check("suspend")
    began = time.monotonic()
    disk.admit(life.rooms.home.store, 0, "a suspend")
    parent = await asyncio.to_thread(base_of, life.record, life.rooms.store, life.rooms.home.templates)
    machine, session = life.need_machine(), life.need_running()
    kind = "full" if life.record.full_next else "diff"
    life.move("suspend")
    snapshot: Snapshot | None = None
    try:
        await machine.outlives(session.quiesce(QUIESCE_BUDGET_S))
        await machine.request("pause")
        life.save(full_next=True)  # until it is packed: a lost diff cannot be taken again
        life.folder.capture.mkdir(mode=0o700)
        captured = await machine.request("capture", kind=kind, folder=str(life.folder.capture), end=False)
        snapshot = await asyncio.to_thread(_pack, life, parent, position, captured)
        info = snapshot.info(total_s=time.monotonic() - began)
        kept = KeptSnapshot(
            info=info,
            stdout=life.log.positions[STDOUT],
            stderr=life.log.positions[STDERR],
            started=life.record.started,
        )
        snapshots = [*life.record.snapshots, kept]
        life.move("suspended", parent=info.digest, snapshots=snapshots, full_next=False, has_disk=False)
    except BaseException as error:
        await _go_on(life, machine, session, error)
        if snapshot is not None:  # stored, but not written down
            await asyncio.to_thread(life.rooms.store.remove, [snapshot.digest])
        raise
    life.session_parent = info.digest
    await machine.end()
    life.machine = None
    await asyncio.to_thread(life.folder.tidy, life.record)
    _log.info("%s suspended in %.2f s, %d bytes", life.id, info.total_s, info.stored_bytes)
    life.emit("suspended", snapshot=info.digest, stored_bytes=info.stored_bytes)
    return info


def base_of(record: Record, store: Store, templates_folder: Path) -> Snapshot | Template:
    """What the machine's memory is a difference to: its last snapshot, or the template that it was started from (by now
    another one may be newest). Raises NotFound, SnapshotInvalid."""
    if record.parent is not None:
        return store.get(record.parent)
    template = templates.load(templates_folder, record.template, record.template_digest)
    if template.digest != record.template_digest:
        raise SnapshotInvalid(
            f"sandbox {record.name} was started from template {record.template_digest}, but {template.name} is "
            f"{template.digest} now",
            hint="The template was built again since. The sandbox goes on; stop it, and start it anew.",
        )
    return template


def _pack(life: Life, parent: Snapshot | Template, position: LogPosition | None, captured: dict[str, Any]) -> Snapshot:
    try:
        return _packed(life, parent, position, captured)
    except OSError as error:
        raise Unavailable(
            f"the snapshot of sandbox {life.name} could not be stored: {error}",
            hint=f"The sandbox goes on. Look after {life.rooms.store.folder}, then suspend it again.",
        ) from error


def _packed(
    life: Life, parent: Snapshot | Template, position: LogPosition | None, captured: dict[str, Any]
) -> Snapshot:
    return capture.pack(
        life.rooms.store,
        folder=life.folder.capture,
        overlay=life.folder.machine(life.record.generation) / "overlay",
        parent=parent,
        templates=life.rooms.home.templates,
        sandbox_id=life.id,
        image_digest=life.record.image_digest,
        kind=captured["kind"],
        position=position,
        pause_s=float(captured.get("pause_s", 0.0)),
        working_set=captured.get("pager", {}).get("working_set", []),
    )


async def _go_on(life: Life, machine: Machine, session: GuestSession, error: BaseException) -> None:
    _log.warning("suspend of %s failed: %r", life.id, error)
    await asyncio.to_thread(shutil.rmtree, life.folder.capture, ignore_errors=True)
    try:
        if machine.over:
            raise MachineFailed("its machine died")
        if (await machine.request("stat")).get("state") == "paused":
            await machine.request("continue")
        await machine.outlives(life.wake(session))
    except (PerdureError, TimeoutError) as reason:
        cause, detail = await why_gone(await life.rooms.ground.launcher(), life.id)
        _log.warning("%s cannot go on: %s", life.id, reason)
        await life.lost(cause, detail)
        return
    life.happened("refused")
