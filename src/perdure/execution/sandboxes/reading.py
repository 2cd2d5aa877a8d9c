"""The tree of a sandbox's files, whatever the sandbox does: what ``diff``, ``export`` and ``commit`` read.

Of one that runs its guest is asked. For one without a machine a quiet one is started from the warm template, with a
clone of the disk: it mounts what the guest has written, runs nothing of the image, and is gone afterwards. So no file
system that a guest wrote is ever opened by this machine's own kernel.

A quiet machine is admitted as any other, and waits its turn; of one sandbox only so many are there at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

from perdure.errors import Conflict, GuestFailed, MachineFailed, PerdureError
from perdure.execution.guest.session import GuestCall, GuestFiles, GuestSession
from perdure.execution.guest.tree import GuestTree
from perdure.execution.images.image import Image
from perdure.execution.machine.remote import Launcher
from perdure.execution.sandboxes import archive, disk, resuming
from perdure.execution.sandboxes.life import READY_TIMEOUT_S, Life
from perdure.execution.sandboxes.machine import Machine, end_stray
from perdure.execution.sandboxes.sandbox import Sandbox
from perdure.execution.snapshots import diskchanges, restore
from perdure.execution.snapshots.diskspace import space_checked
from perdure.execution.snapshots.templates import Template
from perdure.model import SandboxState as S
from perdure.model import new_id

FREEZE_BUDGET_S = 10.0
_HOSTNAME = "reader"
_FOLDERS = "reading-"

_log = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def tree_of(sandbox: Sandbox, *, still: bool = False) -> AsyncIterator[GuestTree]:
    """``still``: nothing of the workload runs meanwhile. Raises Conflict (it is just moving), and what a start does."""
    if sandbox.dozing:  # what it is going to be is known once it sleeps
        async with sandbox.moving:
            pass
    if sandbox.state in (S.CREATED, S.EXITED, S.SUSPENDED):
        async with _quiet(sandbox) as session:
            yield session.tree
    elif still and sandbox.state is S.RUNNING:
        async with _frozen(sandbox) as session:
            yield session.tree
    else:
        async with sandbox.looked_at() as session:
            yield session.tree


@contextlib.asynccontextmanager
async def files_of(sandbox: Sandbox) -> AsyncIterator[GuestFiles]:
    """Its files, to read them only, but for those on its volumes where it does not run. Raises as ``tree_of``."""
    if sandbox.state in (S.CREATED, S.EXITED):
        async with _quiet(sandbox) as session:
            yield session.files
    else:
        async with sandbox.looked_at() as session:
            yield session.files


@contextlib.asynccontextmanager
async def _frozen(sandbox: Sandbox) -> AsyncIterator[GuestSession]:
    """The guest of a running sandbox, whose workload is frozen meanwhile; its files are whole."""
    async with sandbox.moving:
        machine, session = sandbox.need_machine(), sandbox.need_running()
        try:
            await machine.answered(session.quiesce(FREEZE_BUDGET_S), FREEZE_BUDGET_S)
            yield session  # to ``commit`` alone, which waits for no client
        finally:
            with contextlib.suppress(PerdureError):
                await machine.answered(session.thaw(), 0)


@contextlib.asynccontextmanager
async def _quiet(sandbox: Sandbox) -> AsyncIterator[GuestSession]:
    """The guest of a machine that reads the sandbox's disk, as it is now, and nothing else."""
    began = time.monotonic()
    rooms, spec, machine_id = sandbox.rooms, sandbox.record.spec, new_id()
    async with sandbox.quiet:
        with rooms.admission.room(machine_id, spec.memory_mib, await rooms.ground.memory_bytes()):
            async with _admitted(sandbox, machine_id) as session:
                _log.info("%s is read by machine %s, there in %.2f s", sandbox.id, machine_id, time.monotonic() - began)
                yield session


@contextlib.asynccontextmanager
async def _admitted(sandbox: Sandbox, machine_id: str) -> AsyncIterator[GuestSession]:
    rooms = sandbox.rooms
    await asyncio.to_thread(disk.admit, rooms.home, rooms.home.run, 0, "a look at the files of a sandbox")
    folder = rooms.home.run / f"{_FOLDERS}{machine_id}-{secrets.token_hex(4)}"
    with space_checked(str(folder)):
        folder.mkdir(mode=0o700)
    try:
        async with sandbox.moving:
            if sandbox.state not in (S.CREATED, S.EXITED, S.SUSPENDED):
                raise Conflict(f"sandbox {sandbox.name} is {sandbox.state} by now", hint="Try it again.")
            image = sandbox.image
            await asyncio.to_thread(_clone, sandbox, folder)
        spec = sandbox.record.spec
        launcher, template = await rooms.ground.stand(spec.vcpus, spec.memory_mib)
        # again: what it is to run on is known only now
        rooms.admission.check({machine_id: spec.memory_mib}, await rooms.ground.memory_bytes())
        async with contextlib.AsyncExitStack() as there:
            async with rooms.ground.turns:
                machine = _machine(sandbox, launcher, machine_id, template, image, folder / "overlay")
                session = await there.enter_async_context(machine)
                await archive.unpack_all(folder / "archives", session.files)
            yield session
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


@contextlib.asynccontextmanager
async def _machine(
    sandbox: Life, launcher: Launcher, machine_id: str, template: Template, image: Image, overlay: Path
) -> AsyncIterator[GuestSession]:
    assets = await sandbox.rooms.ground.assets()
    firecracker, pager = str(assets.firecracker), str(assets.pager)
    keeper = await launcher.spawn(machine_id, firecracker=firecracker, pager=pager)
    session = GuestSession(_refuse)

    def died(cause: str, detail: str) -> None:
        session.close(MachineFailed(f"the machine that reads sandbox {sandbox.name} died ({cause}): {detail}"))

    machine = Machine(launcher, keeper, session, died)
    try:
        await machine.request(
            "restore",
            firecracker=firecracker,
            pager=pager,
            state=str(template.state),
            memory={
                "kind": "file",
                "path": str(template.memory),
                "name": template.name,
                "digest": template.digest,
            },
            drives={"image": str(image.squashfs), "overlay": str(overlay)},
            swap=True,
        )
        await machine.outlives(session.ready(READY_TIMEOUT_S))
        await machine.answered(session.configure(hostname=_HOSTNAME), READY_TIMEOUT_S)
        yield session
    finally:
        session.close(MachineFailed(f"sandbox {sandbox.name} is not read any more"))
        await machine.end()
        await end_stray(launcher, machine_id)


def sweep(run: Path) -> None:
    """Remove what a node that was killed left of its looks. Its machines are strays, which are ended as such."""
    for path in run.glob(f"{_FOLDERS}*"):
        shutil.rmtree(path, ignore_errors=True)


def _clone(life: Life, folder: Path) -> None:
    """The disk that its next machine would get, and what would be put in there first."""
    record, target = life.record, folder / "overlay"
    home = life.rooms.home
    if record.state is S.SUSPENDED:
        kept = resuming.choose(life, None)
        index = diskchanges.load(life.folder.disk_index, kept.info.digest)
        if resuming.is_kept(life.folder.disk, index):
            with contextlib.suppress(FileNotFoundError):  # others needed its room in this moment
                disk.clone(life.folder.disk, target)
                return
        with life.rooms.store.reading(kept.info.digest):
            restore.write_disk(life.rooms.store, life.rooms.store.get(kept.info.digest), target)
        return
    if record.has_disk:
        disk.clone(life.folder.overlay(record.generation), target)
    else:
        disk.make(home.root / "disks", record.spec.disk_mib, target)
    if life.folder.archives.exists():
        with space_checked(str(folder)):
            (folder / "archives").mkdir()
            for path in life.folder.archives.iterdir():
                os.link(path, folder / "archives" / path.name)


async def _refuse(call: GuestCall) -> None:
    raise GuestFailed(f"the guest that only reads asked for {call.method} {call.path}")
