"""From the warm template to a running main process."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from perdure.errors import MachineFailed, PerdureError
from perdure.execution.guest.session import GuestSession, Process
from perdure.execution.machine.remote import Launcher
from perdure.execution.sandboxes import archive, bounds, disk, fittings, mounts, networking, syncing, workload
from perdure.execution.sandboxes.life import Life
from perdure.execution.sandboxes.machine import Machine
from perdure.execution.sandboxes.phases import Phases
from perdure.execution.snapshots.diskspace import space_checked
from perdure.execution.snapshots.templates import Template
from perdure.host.progress import Progress

_log = logging.getLogger(__name__)


async def start(life: Life, progress: Progress) -> None:
    """Raises NoRoom, NoSpace; what the image, the guest or the machine refused: the sandbox has then exited, and its
    record says why."""
    life.check("start")
    async with life.admitted():
        await _start(life, progress)


async def _start(life: Life, progress: Progress) -> None:
    phases = Phases()
    image, spec = life.image, life.record.spec
    process = workload.main_process(spec, image.config, life.hostname)
    await asyncio.to_thread(disk.admit, life.rooms.home, life.rooms.home.sandboxes, 0, "a start")
    volumes, shape = life.rooms.volumes, mounts.shape_of(spec)
    volumes.check_free(life.id, spec)  # before a template is made for it
    launcher, template = await life.rooms.ground.stand(spec.vcpus, spec.memory_mib, progress, shape)
    await life.check_room()
    if not life.record.has_disk:  # files that it left are no part of any template
        template = await life.rooms.ground.with_image(launcher, template, image, spec.disk_mib, progress, shape)
    phases.end("stand")
    await networking.publish(life)
    try:
        volumes.check_free(life.id, spec)  # nothing waits from here until the record says that it has them
        life.move(
            "start",
            template=template.name,
            template_digest=template.digest,
            parent=None,
            exit_status=None,
            finished=None,
            cause="",
            detail="",
            full_next=False,
            main="",
        )
    except BaseException:
        await networking.withdraw(life)
        raise
    try:
        async with life.rooms.ground.turns:
            phases.end("turn")
            await _make_disk(life, template)
            phases.end("disk")
            session, answer = await _restore_template(life, launcher, template, phases)
            machine = life.need_machine()
            await _put_in(life, machine, session)
            for step in fittings.late_steps(spec, image.config.volumes):
                await machine.outlives(session.files.tool(*step))
            life.log.restart()
            main: Process = await machine.outlives(session.exec(process, process_id=life.id, **fittings.bounds(spec)))
    except BaseException as error:
        await _give_up(life, error)
        raise
    life.follow(main)
    life.happened("started", started=time.time())  # it runs, whether or not the disk has room for saying so
    phases.end("command")
    phases.finish()
    await life.measure(answer, phases, main)
    _log.info("%s started: %s", life.id, phases)
    life.emit("started")


async def _make_disk(life: Life, template: Template) -> None:
    if life.record.has_disk:
        return
    folder = life.folder.machine(life.record.generation)
    with space_checked("the disk of a sandbox"):
        folder.mkdir(mode=0o700, exist_ok=True)
    overlay = folder / "overlay"
    if template.overlay is not None:
        await asyncio.to_thread(disk.clone, template.overlay, overlay)
    else:
        empty_disks = life.rooms.home.root / "disks"
        await asyncio.to_thread(disk.make, empty_disks, life.record.spec.disk_mib, overlay)
    life.save(has_disk=True)


async def _restore_template(
    life: Life, launcher: Launcher, template: Template, phases: Phases
) -> tuple[GuestSession, dict[str, Any]]:
    session = life.new_session()
    machine = await life.spawn(launcher, session)
    phases.end("keeper")
    assets = await life.rooms.ground.assets()
    spec = life.record.spec
    volumes = {drive.id: str(life.rooms.volumes.path(drive.volume)) for drive in mounts.drives_of(spec)}
    drives = {"image": str(life.image.squashfs), "overlay": str(life.folder.overlay(life.record.generation))}
    answer = await machine.request(
        "restore",
        firecracker=str(assets.firecracker),
        pager=str(assets.pager),
        state=str(template.state),
        memory={
            "kind": "file",
            "path": str(template.memory),
            "name": template.name,
            "digest": template.digest,
        },
        drives=drives | volumes,
        swap=True if template.overlay is None else [*volumes],
        network=networking.params(life),
        cpus=life.record.spec.cpus,
        **bounds.of_disks(life.record.spec),
    )
    phases.end("restore")
    await life.until_ready(machine, session)
    phases.end("guest")
    if template.overlay is None:
        await machine.answered(session.configure(hostname=life.hostname), 0)
    # clones of a template share its clock, its entropy and its identity: all are renewed before anything runs
    await machine.answered(life.wake(session, life.new_identity()), 0)
    for step in (*fittings.steps(spec), *mounts.steps(spec)):
        await machine.outlives(session.files.tool(*step))
    phases.end("configure")
    return session, answer


async def _put_in(life: Life, machine: Machine, session: GuestSession) -> None:
    """What was kept for the start; it is forgotten here only when it is on the guest's disk."""
    if not await machine.outlives(archive.unpack_all(life.folder.archives, session.files)):
        return
    if life.record.calls is None:  # a run puts its own in again before every start
        if problem := await syncing.sync(life):
            raise MachineFailed(f"what was put into sandbox {life.name} before its start: {problem}")
        await machine.outlives(session.thaw())
    await asyncio.to_thread(archive.forget, life.folder.archives)


async def _give_up(life: Life, error: BaseException) -> None:
    _log.warning("start of %s failed: %r", life.id, error)
    await life.end_machine(MachineFailed(f"sandbox {life.name} did not start"))
    status = error.exit_status if isinstance(error, PerdureError) and error.exit_status in (126, 127) else 125
    life.exited("died", "start-failed", error.message if isinstance(error, PerdureError) else repr(error), status)
