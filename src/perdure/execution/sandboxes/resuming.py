"""Back from a snapshot: the newest of its line, or any older one (a roll-back)."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import shutil
from pathlib import Path

from perdure.errors import Conflict, MachineFailed, NotFound
from perdure.execution.machine.remote import Launcher
from perdure.execution.sandboxes import bounds, disk, feeding, mounts, networking
from perdure.execution.sandboxes.feeding import Feeder
from perdure.execution.sandboxes.life import Life
from perdure.execution.sandboxes.phases import Phases
from perdure.execution.sandboxes.record import KeptSnapshot, Record
from perdure.execution.snapshots import diskchanges, restore
from perdure.execution.snapshots.diskspace import space_checked
from perdure.execution.snapshots.templates import Template
from perdure.formats.diskindex import DiskIndex
from perdure.formats.manifest import Snapshot
from perdure.host.progress import Progress
from perdure.model import CallsEndpoint, SandboxState, is_id

_log = logging.getLogger(__name__)


async def resume(
    life: Life,
    wanted: str | None,
    calls: CallsEndpoint | None,
    progress: Progress,
    ready: restore.RestoreFiles | None = None,
    populate: bool | None = None,
    reason: str = "",
) -> None:
    """``ready``: files that were prepared for this snapshot, of which this machine gets a copy. ``populate``: bring all
    of its memory once it runs (None: where some of it is beyond this machine).

    Raises what refused; the sandbox is then as it was, or (where its machine was ended before) suspended.
    """
    event = "roll back" if wanted and life.state is SandboxState.RUNNING else "resume"
    life.check(event)
    phases = Phases()
    kept = choose(life, wanted)
    _check_volumes(life, kept, event)
    with contextlib.ExitStack() as held:  # until the pager has its files open, nobody sweeps them away
        await asyncio.to_thread(held.enter_context, life.rooms.store.reading(kept.info.digest))
        stored = await asyncio.to_thread(life.rooms.store.get, kept.info.digest)
        feeder = await feeding.opened(life.rooms.store, stored)
        phases.end("open")
        try:
            populates = populate if populate is not None else feeder is not None
            async with life.admitted():
                await _resume(life, stored, kept, event, calls, progress, ready, phases, feeder, populates, reason)
        finally:
            if feeder is not None and not feeder.joined:
                await feeder.close()


async def _resume(
    life: Life,
    stored: Snapshot,
    kept: KeptSnapshot,
    event: str,
    calls: CallsEndpoint | None,
    progress: Progress,
    ready: restore.RestoreFiles | None,
    phases: Phases,
    feeder: Feeder | None,
    populates: bool,
    reason: str,
) -> None:
    spec = life.record.spec
    shape = mounts.shape_of(spec)
    launcher, template = await life.rooms.ground.stand(spec.vcpus, spec.memory_mib, progress, shape)
    await life.check_room()
    phases.end("stand")
    generation = life.fresh_generation()
    try:  # what is damaged refuses before anything ends
        prepared = await asyncio.to_thread(_prepare, life, generation, stored, template, ready)
    except BaseException:
        await asyncio.to_thread(life.folder.tidy, life.record)
        raise
    if feeder is not None:
        feeder.ahead(prepared.absent)
    phases.end("prepare")
    await networking.publish(life)
    # in the same daemon, from the snapshot that it was suspended to: every stream goes on where it was
    goes_on = life.session is not None and life.session_parent == stored.digest
    if not goes_on:
        await life.end_machine(Conflict(f"sandbox {life.name} went back to an older snapshot"))
    try:
        _check_volumes(life, kept, event)  # nothing waits from here until the record says that it has them
        life.move(event)
    except BaseException:
        await networking.withdraw_if_over(life)
        await asyncio.to_thread(life.folder.tidy, life.record)
        raise
    try:
        async with life.rooms.ground.turns:
            phases.end("turn")
            await _restore(
                life, generation, stored, kept, prepared, launcher, calls, goes_on, phases, feeder, populates
            )
    except BaseException as error:
        _log.warning("resume of %s failed: %r", life.id, error)
        await life.end_machine(MachineFailed(f"sandbox {life.name} did not resume"))
        life.happened(refusal(life.record))
        await networking.withdraw_if_over(life)
        await asyncio.to_thread(life.folder.tidy, life.record)
        raise
    await asyncio.to_thread(life.folder.tidy, life.record)
    _log.info("%s resumed: %s", life.id, phases)
    why = {"reason": reason} if reason else {}
    life.emit("resumed", snapshot=stored.digest, total_s=phases.times["total_s"], **why)


def refusal(record: Record) -> str:
    """The event that ends a resume which did not succeed: what had exited has exited still."""
    return "refused" if record.finished is None else "refused, exited"


async def _restore(
    life: Life,
    generation: int,
    stored: Snapshot,
    kept: KeptSnapshot,
    prepared: restore.RestoreFiles,
    launcher: Launcher,
    calls: CallsEndpoint | None,
    goes_on: bool,
    phases: Phases,
    feeder: Feeder | None,
    populates: bool,
) -> None:
    life.save(calls=calls or life.record.calls)
    if not goes_on:
        life.log.restart(kept.stdout, kept.stderr)
    session = life.session if life.session is not None and goes_on else life.new_session()
    machine = await life.spawn(launcher, session)
    if feeder is not None:
        machine.feed(feeder)
    phases.end("keeper")
    assets = await life.rooms.ground.assets()
    answer = await machine.request(
        "restore",
        firecracker=str(assets.firecracker),
        pager=str(assets.pager),
        state=str(prepared.state),
        memory={
            "kind": "layers",
            "map": str(prepared.memory_map),
            "name": prepared.template.name,
            "template": str(prepared.template.memory),
            "digest": prepared.template.digest,
        },
        drives={"image": str(life.image.squashfs), "overlay": str(prepared.overlay)}
        | {drive.id: str(life.rooms.volumes.path(drive.volume)) for drive in mounts.drives_of(life.record.spec)},
        swap=False,
        network=networking.params(life, stored.config.origin),
        cpus=life.record.spec.cpus,
        **bounds.of_disks(life.record.spec),
    )
    phases.end("restore")
    await life.until_ready(machine, session)
    phases.end("guest")
    # of another sandbox's guest this one is a fork: it must not be taken for it
    is_fork = stored.config.sandbox_id != life.id
    await machine.answered(life.wake(session, life.new_identity() if is_fork else None), 0)
    phases.end("wake")
    phases.finish()
    main = life.find_main(session)
    if life.main is None or life.main.over or life.main.process is not main:
        life.follow(main)
    if not goes_on:
        for process in session.processes.values():
            if process.id != life.main_id:
                life.discard(process)
    life.session_parent = None
    life.move(
        "resumed",
        template=prepared.template.name,
        template_digest=prepared.template.digest,
        parent=kept.info.digest,
        restored=kept.info.digest,
        populates=populates,
        started=kept.started,
        exit_status=None,
        finished=None,
        cause="",
        detail="",
        full_next=False,
        generation=generation,
        has_disk=True,
    )
    await life.measure(answer, phases, main)
    if populates:
        await feeding.populate(machine.keeper)


def _check_volumes(life: Life, kept: KeptSnapshot, event: str) -> None:
    """Raises Conflict where a volume is another's by now, or not what the snapshot's memory takes it for; NotFound."""
    spec = life.record.spec
    if event == "roll back" and (written := mounts.writes_volumes(spec)):
        raise Conflict(
            f"sandbox {life.name} writes volume {written[0]}, which no snapshot holds: it cannot go back",
            hint="Mount volumes read-only (:ro) in a sandbox that is to be rolled back.",
        )
    life.rooms.volumes.check_free(life.id, spec)
    life.rooms.volumes.check_unchanged(life.name, spec, kept.volumes)


def choose(life: Life, wanted: str | None) -> KeptSnapshot:
    """The snapshot to go on from: the wanted one, or the newest of its line. Raises NotFound."""
    record = life.record
    if wanted:
        if (kept := record.snapshot(wanted)) is None:
            raise NotFound(
                f"sandbox {life.name} has no snapshot {wanted}", hint=f"`fcrun inspect {life.name}` names them."
            )
        return kept
    if record.parent and (kept := record.snapshot(record.parent)):
        return kept
    if not record.snapshots:
        hint = f"Start it again, on the files that it left: fcrun start {life.name}"
        raise NotFound(f"sandbox {life.name} has no snapshot to resume from", hint=hint)
    return record.snapshots[-1]


def _prepare(
    life: Life, generation: int, stored: Snapshot, template: Template, ready: restore.RestoreFiles | None
) -> restore.RestoreFiles:
    """Raises what ``restore.prepare`` does."""
    with space_checked(f"the files of a machine of sandbox {life.name}"):
        return _prepared(life, generation, stored, template, ready)


def _prepared(
    life: Life, generation: int, stored: Snapshot, template: Template, ready: restore.RestoreFiles | None
) -> restore.RestoreFiles:
    folder = life.folder.machine(generation)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    home = life.rooms.home
    index = diskchanges.load(life.folder.disk_index, stored.digest)
    if ready is not None:
        os.link(ready.state, folder / "state")
        os.link(ready.memory_map, folder / "memory.map")
        disk.clone(ready.overlay, folder / "overlay")
        files = dataclasses.replace(
            ready, state=folder / "state", memory_map=folder / "memory.map", overlay=folder / "overlay"
        )
    else:
        files = restore.prepare(
            life.rooms.store,
            stored,
            folder=folder,
            templates=home.templates,
            facts=template.facts,
            disk_file=life.folder.disk if is_kept(life.folder.disk, index) else None,
        )
    if index is None and is_id(stored.config.sandbox_id):  # what it is a fork of may have one
        index = diskchanges.load(home.sandboxes / stored.config.sandbox_id / life.folder.disk_index.name, stored.digest)
    if index is not None and not is_kept(files.overlay, index):
        stamp = diskchanges.stamped(files.overlay)
        diskchanges.save(life.folder.disk_index, dataclasses.replace(index, stamp=stamp))
    return files


def is_kept(path: Path, index: DiskIndex | None) -> bool:
    """Whether the file holds just what the index says."""
    try:
        return index is not None and diskchanges.stamp_of(path) == index.stamp
    except OSError:
        return False
