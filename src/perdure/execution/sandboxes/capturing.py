"""From a running machine to a stored snapshot: what a suspend and a live checkpoint have in common.

    quiesce -> pause -> memory to tmpfs -> (checkpoint: continue) -> collect -> pack

The disk is looked at beside it: it stands still with the workload. Only the second arrow to the third keep the vCPUs
still. Files that wait to be packed lie in ``capture-HEX/``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from perdure.errors import SnapshotInvalid, Unavailable
from perdure.execution.guest.session import GuestSession, Quiesced
from perdure.execution.sandboxes import disk
from perdure.execution.sandboxes.life import Life
from perdure.execution.sandboxes.machine import Machine
from perdure.execution.sandboxes.record import KeptSnapshot, Record
from perdure.execution.snapshots import capture, diskchanges, templates
from perdure.execution.snapshots.diskchanges import Changes
from perdure.execution.snapshots.store import Store
from perdure.execution.snapshots.templates import Template
from perdure.formats.diskindex import DiskIndex
from perdure.formats.logs import STDERR, STDOUT
from perdure.formats.manifest import Origin, Snapshot
from perdure.model import LogPosition, MemoryUse, SnapshotInfo

QUIESCE_BUDGET_S = 2.0
_PAGER_FIGURES = ("faults", "stale_faults", "prefetched", "frames", "copied_bytes", "zero_bytes", "cpu_s")

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


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


async def parent_of(life: Life) -> Snapshot | Template:
    """The same for a sandbox, in a thread."""
    return await asyncio.to_thread(base_of, life.record, life.rooms.store, life.rooms.home.templates)


@dataclass(frozen=True)
class Captured:
    """What stands still, or stood still when it was captured."""

    folder: Path  # where its files are collected
    pause_s: float
    overlay: Path  # the disk of that moment, or as much of it as changed
    changes: Callable[[], Awaitable[Changes]]  # where it did
    origin: Origin  # of that moment too
    memory_use: MemoryUse | None = None  # who had the guest's memory, as the guest told before


def origin_of(life: Life, volumes: dict[str, list[int]], answer: Mapping[str, Any]) -> Origin:
    """Take it while the machine stands still. What the guest has written by then and is not in the log yet, it sends
    again after a restore. ``volumes``: what they are known by; ``answer``: of ``capture``."""
    return Origin(
        spec=msgspec.structs.replace(life.record.spec, calls=None),
        main=life.main_id,
        stdout=life.log.positions[STDOUT],
        stderr=life.log.positions[STDERR],
        started=life.record.started,
        volumes=volumes,
        opened=list(answer.get("opened") or []),
    )


async def quiesced(life: Life, machine: Machine, session: GuestSession) -> Quiesced:
    """The workload is frozen, what it wrote is on the disk, its free memory given back, as far as the budget allows."""
    done = await machine.answered(session.quiesce(QUIESCE_BUDGET_S), QUIESCE_BUDGET_S)
    await on_disk(life, disk.write_back, life.folder.overlay(life.record.generation))
    await on_disk(life, life.rooms.volumes.write_back, life.record.spec)
    return done


async def on_disk(life: Life, work: Callable[..., _T], *values: Any) -> _T:
    """Do something with the file of its disk, in a thread. Raises Unavailable, NoSpace."""
    try:
        return await asyncio.to_thread(work, *values)
    except OSError as error:
        raise Unavailable(
            f"the disk of sandbox {life.name} cannot be read: {error}",
            hint=f"The sandbox goes on. Look after {life.folder.root}, then try it again.",
        ) from error


async def index_of(life: Life) -> DiskIndex | None:
    """What its disk held at the snapshot that the next one is a difference to."""
    return await asyncio.to_thread(diskchanges.load, life.folder.disk_index, life.record.parent)


async def store(life: Life, captured: Captured, parent: Snapshot | Template, position: LogPosition | None) -> Snapshot:
    """Collect what was captured and pack it; durable when this returns. Raises what ``pack`` does, Unavailable."""
    began = time.monotonic()
    collected = await life.need_machine().request("collect", folder=str(captured.folder))
    working_set = collected.get("pager", {}).get("working_set", [])
    changes = await captured.changes()
    packing = time.monotonic()
    figures = {name: collected["pager"][name] for name in _PAGER_FIGURES if name in collected.get("pager", {})}
    if figures:
        _log.info("%s: its pager: %s", life.id, figures)
    snapshot = await asyncio.to_thread(_pack, life, captured, changes, parent, position, working_set)
    _log.info(
        "%s: %d bytes collected in %.3f s (%.3f below the line), packed in %.3f s",
        life.id,
        collected["bytes"],
        packing - began,
        collected["collect_s"],
        time.monotonic() - packing,
    )
    return snapshot


def kept(life: Life, snapshot: Snapshot, total_s: float) -> tuple[SnapshotInfo, list[KeptSnapshot]]:
    """The snapshot as the record keeps it, and all snapshots of the record with it."""
    info = snapshot.info(total_s=total_s)
    return info, [*life.record.snapshots, KeptSnapshot.of(info, snapshot.config.origin)]


def _pack(
    life: Life,
    captured: Captured,
    changes: Changes,
    parent: Snapshot | Template,
    position: LogPosition | None,
    working_set: list[int],
) -> Snapshot:
    try:
        snapshot = capture.pack(
            life.rooms.store,
            folder=captured.folder,
            overlay=captured.overlay,
            changed=changes.ranges,
            parent=parent,
            templates=life.rooms.home.templates,
            sandbox_id=life.id,
            image_digest=life.record.image_digest,
            position=position,
            pause_s=captured.pause_s,
            working_set=working_set,
            exact=True,
            origin=captured.origin,
            memory_use=captured.memory_use,
        )
    except OSError as error:
        raise Unavailable(
            f"the snapshot of sandbox {life.name} could not be stored: {error}",
            hint=f"The sandbox goes on. Look after {life.rooms.store.folder}, then try it again.",
        ) from error
    diskchanges.save(life.folder.disk_index, DiskIndex(snapshot.digest, changes.stamp, changes.chunks))
    return snapshot
