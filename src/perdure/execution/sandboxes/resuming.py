"""Back from a snapshot: the newest of its line, or any older one (a roll-back)."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time

from perdure.errors import Conflict, MachineFailed, NotFound
from perdure.execution.machine.remote import Launcher
from perdure.execution.sandboxes.life import READY_TIMEOUT_S, Life
from perdure.execution.sandboxes.record import KeptSnapshot, Record
from perdure.execution.snapshots import restore
from perdure.execution.snapshots.templates import Template
from perdure.formats.manifest import Snapshot
from perdure.host.progress import Progress
from perdure.model import CallsEndpoint, SandboxState

_log = logging.getLogger(__name__)


async def resume(life: Life, wanted: str | None, calls: CallsEndpoint | None, progress: Progress) -> None:
    """Raises what refused; the sandbox is then as it was, or (where its machine was ended before) suspended."""
    event = "roll back" if wanted and life.state is SandboxState.RUNNING else "resume"
    life.check(event)
    began = time.monotonic()
    kept = _choose(life, wanted)
    stored = await asyncio.to_thread(life.rooms.store.get, kept.info.digest)
    spec = life.record.spec
    launcher, template = await life.rooms.ground.stand(spec.vcpus, spec.memory_mib, progress)
    try:  # what is damaged refuses before anything ends
        prepared = await asyncio.to_thread(_prepare, life, stored, template)
    except BaseException:
        await asyncio.to_thread(life.folder.tidy, life.record)
        raise
    # in the same daemon, from the snapshot that it was suspended to: every stream goes on where it was
    goes_on = life.session is not None and life.session_parent == stored.digest
    if not goes_on:
        await life.end_machine(Conflict(f"sandbox {life.name} went back to an older snapshot"))
    life.move(event)
    try:
        total_s = await _restore(life, kept, prepared, launcher, calls, goes_on, began)
    except BaseException as error:
        _log.warning("resume of %s failed: %r", life.id, error)
        await life.end_machine(MachineFailed(f"sandbox {life.name} did not resume"))
        life.happened(refusal(life.record))
        await asyncio.to_thread(life.folder.tidy, life.record)
        raise
    await asyncio.to_thread(life.folder.tidy, life.record)
    _log.info("%s resumed in %.2f s", life.id, total_s)
    life.emit("resumed", snapshot=stored.digest, total_s=total_s)


def refusal(record: Record) -> str:
    """The event that ends a resume which did not succeed: what had exited has exited still."""
    return "refused" if record.finished is None else "refused, exited"


async def _restore(
    life: Life,
    kept: KeptSnapshot,
    prepared: restore.RestoreFiles,
    launcher: Launcher,
    calls: CallsEndpoint | None,
    goes_on: bool,
    began: float,
) -> float:
    """How long it took until the workload ran, in seconds."""
    life.save(calls=calls or life.record.calls)
    if not goes_on:
        life.log.restart(kept.stdout, kept.stderr)
    session = life.session if life.session is not None and goes_on else life.new_session()
    machine = await life.spawn(launcher, session)
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
        },
        drives={"image": str(life.image.squashfs), "overlay": str(prepared.overlay)},
        swap=False,
    )
    await machine.outlives(session.ready(READY_TIMEOUT_S))
    ready_s = time.monotonic() - began
    await machine.outlives(life.wake(session))
    total_s = time.monotonic() - began
    main = life.find_main(session)
    if life.main is None or life.main.over or life.main.process is not main:
        life.follow(main)
    if not goes_on:
        for process in session.processes.values():
            if process.id != life.id:
                life.discard(process)
    life.session_parent = None
    life.move(
        "resumed",
        template=prepared.template.name,
        template_digest=prepared.template.digest,
        parent=kept.info.digest,
        started=kept.started,
        exit_status=None,
        finished=None,
        cause="",
        detail="",
        full_next=False,
        generation=life.record.generation + 1,
        has_disk=True,
    )
    await life.measure(answer | {"ready_s": ready_s, "total_s": total_s}, main)
    return total_s


def _choose(life: Life, wanted: str | None) -> KeptSnapshot:
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


def _prepare(life: Life, stored: Snapshot, template: Template) -> restore.RestoreFiles:
    folder = life.folder.machine(life.record.generation + 1)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    home = life.rooms.home
    return restore.prepare(life.rooms.store, stored, folder=folder, templates=home.templates, facts=template.facts)
