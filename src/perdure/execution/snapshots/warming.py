"""How templates are made: one cold boot per shape, and on it, per image, one with the image attached.

Both end idle, before anything of a workload runs. Concurrent calls make one; one that does not verify is made again.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from perdure.errors import (
    AlreadyRunning,
    CommandNotExecutable,
    CommandNotFound,
    GuestFailed,
    MachineFailed,
    NotFound,
    PerdureError,
    SnapshotInvalid,
    Unsupported,
)
from perdure.execution.guest.session import GuestCall, GuestSession, Identity
from perdure.execution.machine.configuration import (
    BOOT_ARGS,
    PLACEHOLDER_BYTES,
    READ_ONLY,
    volume_drives,
)
from perdure.execution.machine.remote import Keeper, Launcher
from perdure.execution.snapshots import templates
from perdure.execution.snapshots.diskspace import space_checked
from perdure.execution.snapshots.templates import Template
from perdure.formats.manifest import Facts
from perdure.host.assets import Assets
from perdure.host.paths import Home
from perdure.host.progress import Progress, silent
from perdure.model import ExecSpec, LauncherAddress

BOOT_TIMEOUT_S = 120.0
END_TIMEOUT_S = 30.0
ENTROPY_BYTES = 64
DIFF_LIMIT_MIB = 3072  # diff snapshots of larger guests are corrupt before Firecracker 1.15
WARM_COMMAND = ("/bin/sh", "-c", ":")  # so that the loader and the C library are in memory already

_cpus: dict[LauncherAddress, tuple[str, int]] = {}  # a launcher's kernel does not change its CPU


async def ensure(
    home: Home,
    assets: Assets,
    launcher: Launcher,
    *,
    vcpus: int,
    memory_mib: int,
    volumes: str = "",
    progress: Progress = silent,
) -> Template:
    """The template of this shape, built by one cold boot if there is none; concurrent calls build one.

    ``volumes``: the drives that it has besides image and overlay (``sandboxes.mounts``).

    Raises Unsupported (a guest that this Firecracker cannot capture), MachineFailed and GuestFailed (it did not
    boot), NoSpace.
    """
    check_supported(assets.firecracker_version, memory_mib)
    vendor, family = await cpu(launcher)
    parts = f"{templates.VERSION} {assets.digest} {vendor} {family} {vcpus} {memory_mib} {BOOT_ARGS}"
    if volumes:
        parts += f" {volumes}"
    name = hashlib.sha256(parts.encode()).hexdigest()[:16]

    async def make(folder: Path, name: str) -> Facts:
        progress("Booting the template", 0, 3)
        await _boot(launcher, assets, folder, name, vcpus, memory_mib, volumes, progress)
        progress("Booting the template", 3, 3)
        kernel, guestd = await asyncio.to_thread(kernel_digests, assets)
        return Facts(
            firecracker=assets.firecracker_version,
            cpu_vendor=vendor,
            cpu_family=family,
            vcpus=vcpus,
            memory_mib=memory_mib,
            kernel=kernel,
            guestd=guestd,
        )

    return await _made(home, name, make)


async def attach(
    home: Home,
    assets: Assets,
    launcher: Launcher,
    base: Template,
    *,
    image_digest: str,
    squashfs: Path,
    disk_mib: int,
    make_disk: Callable[[Path], None],
    volumes: str = "",
    progress: Progress = silent,
) -> Template:
    """The template with this image attached to ``base``: mounted, its shell run once, a disk with nothing of anybody.

    A sandbox that starts from it is spared what its guest would do for every one of them. ``make_disk`` writes an empty
    disk of ``disk_mib`` to a path. Raises as ``ensure`` does.
    """
    parts = f"{templates.VERSION} {base.name} {base.digest} {image_digest} {disk_mib} {WARM_COMMAND}"

    async def make(folder: Path, name: str) -> Facts:
        progress("Attaching the image", 0, 3)
        await asyncio.to_thread(make_disk, folder / "overlay")
        await _attach(launcher, assets, folder, name, base, squashfs, volumes, progress)
        return base.facts

    return await _made(home, hashlib.sha256(parts.encode()).hexdigest()[:16], make, image_digest, base)


async def _made(
    home: Home,
    name: str,
    make: Callable[[Path, str], Awaitable[Facts]],
    image: str = "",
    base: Template | None = None,
) -> Template:
    """The template of this name; if there is none, what ``make`` captures into the folder that it is given, which is a
    difference to ``base``."""

    def load() -> Template:
        template = templates.load(home.templates, name)
        if image and template.overlay is None:
            raise SnapshotInvalid(f"template {name} has lost its disk")
        return template

    try:
        return await asyncio.to_thread(load)
    except (NotFound, SnapshotInvalid):
        pass  # made below
    with space_checked(f"template {name}"):
        async with _alone(home.templates / f"{name}.lock"):
            try:
                return await asyncio.to_thread(load)
            except (NotFound, SnapshotInvalid):
                # What is there nothing can start from, and nothing over it can be restored. A part of it is what a node
                # left that was killed in this line: it would be in the way of the new one.
                await asyncio.to_thread(shutil.rmtree, home.templates / name, True)
            await asyncio.to_thread(_sweep, home.templates, name)
            folder = home.templates / f"{name}.{secrets.token_hex(4)}.new"
            folder.mkdir(mode=0o700)
            try:
                facts = await make(folder, name)
                await asyncio.to_thread(templates.seal, folder, home.templates / name, facts, image, base)
            finally:
                await asyncio.to_thread(shutil.rmtree, folder, True)
            return await asyncio.to_thread(load)


def check_supported(firecracker: str, memory_mib: int) -> None:
    """Raises Unsupported where a diff snapshot of such a guest would be corrupt."""
    version = tuple(int(part) for part in firecracker.split(".")[:2])
    if memory_mib > DIFF_LIMIT_MIB and version < (1, 15):
        raise Unsupported(
            f"Firecracker {firecracker} cannot take diff snapshots of a guest with {memory_mib} MiB of memory",
            hint=f"Use at most {DIFF_LIMIT_MIB} MiB, or Firecracker 1.15 or newer (fcrun setup).",
        )


def kernel_digests(assets: Assets) -> tuple[str, str]:
    """(kernel, guestd) as the facts of a template have them."""
    return templates.file_digest(assets.vmlinux), templates.file_digest(assets.guest_initrd)


async def _boot(
    launcher: Launcher,
    assets: Assets,
    folder: Path,
    name: str,
    vcpus: int,
    memory_mib: int,
    volumes: str,
    progress: Progress,
) -> None:
    """Boot, wait until guestd is idle, capture ``state`` and ``memory`` into ``folder``, end."""
    wanted = {"image": True, "overlay": False}
    wanted |= {drive: access == READ_ONLY for drive, access in zip(volume_drives(volumes), volumes, strict=True)}
    drives = []
    for drive, read_only in wanted.items():
        path = folder / ("placeholder" if drive == "overlay" else drive)
        path.write_bytes(bytes(PLACEHOLDER_BYTES))
        drives.append({"id": drive, "path": str(path), "read_only": read_only})
    async with _machine(launcher, name) as (keeper, session):
        await keeper.request(
            "boot",
            firecracker=str(assets.firecracker),
            kernel=str(assets.vmlinux),
            initrd=str(assets.guest_initrd),
            boot_args=BOOT_ARGS,
            vcpus=vcpus,
            memory_mib=memory_mib,
            drives=drives,
            nic=True,
            timeout_s=BOOT_TIMEOUT_S,
        )
        try:
            info = await session.ready(BOOT_TIMEOUT_S)
        except TimeoutError:
            raise GuestFailed(
                f"guestd did not dial the host within {BOOT_TIMEOUT_S:g} s of the template's boot",
                hint="fcrun doctor shows whether this machine can run guests.",
            ) from None
        if info.configured:
            raise GuestFailed("a freshly booted guest says that it is configured already")
        progress("Capturing the template", 1, 3)
        await _capture(keeper, assets, "full", folder)
        progress("Capturing the template", 2, 3)
    for made in drives:
        Path(str(made["path"])).unlink()


def _placeholders(folder: Path, volumes: str) -> dict[str, str]:
    """A file for each of these drives, by id; no part of a template."""
    paths = {drive: folder / drive for drive in volume_drives(volumes)}
    for path in paths.values():
        path.write_bytes(bytes(PLACEHOLDER_BYTES))
    return {drive: str(path) for drive, path in paths.items()}


async def _attach(
    launcher: Launcher,
    assets: Assets,
    folder: Path,
    name: str,
    base: Template,
    squashfs: Path,
    volumes: str,
    progress: Progress,
) -> None:
    """Start from ``base``, mount the image over the disk in ``folder``, capture the difference to ``base`` into it."""
    async with _machine(launcher, name) as (keeper, session):
        await keeper.request(
            "restore",
            firecracker=str(assets.firecracker),
            state=str(base.state),
            memory={"kind": "file", "path": str(base.memory), "name": base.name, "digest": base.digest},
            drives={"image": str(squashfs), "overlay": str(folder / "overlay")} | _placeholders(folder, volumes),
            swap=True,
            timeout_s=BOOT_TIMEOUT_S,
        )
        await session.ready(BOOT_TIMEOUT_S)
        try:
            async with asyncio.timeout(BOOT_TIMEOUT_S):
                await session.configure(hostname="template")
                await session.wake(time.time(), os.urandom(ENTROPY_BYTES), Identity("template", os.urandom(16).hex()))
                progress("Attaching the image", 1, 3)
                process = await session.exec(ExecSpec(command=list(WARM_COMMAND)))
                await process.wait()
                process.release()
        except (CommandNotFound, CommandNotExecutable):
            pass  # an image without a shell
        except TimeoutError:
            raise MachineFailed(f"the guest that attaches image {squashfs} did not answer in time") from None
        progress("Attaching the image", 2, 3)
        await _capture(keeper, assets, "diff", folder)
    progress("Attaching the image", 3, 3)


async def _capture(keeper: Keeper, assets: Assets, kind: str, folder: Path) -> None:
    await keeper.request("capture", kind=kind, collector=str(assets.collector), timeout_s=BOOT_TIMEOUT_S)
    await keeper.request("collect", folder=str(folder), end=True, timeout_s=BOOT_TIMEOUT_S)


@contextlib.asynccontextmanager
async def _machine(launcher: Launcher, name: str) -> AsyncIterator[tuple[Keeper, GuestSession]]:
    """A keeper for the machine that becomes a template, and a session with its guest; both end with the block."""
    keeper = await _spawn(launcher, f"template-{name}")
    session = GuestSession(_refuse)
    try:
        keeper.listen(lambda event: session.close(_died(event)))
        keeper.connect_channel(session)
        yield keeper, session
    finally:
        session.close(MachineFailed("the template's machine was ended"))
        await _end(keeper)


async def _spawn(launcher: Launcher, sandbox_id: str) -> Keeper:
    try:
        return await launcher.spawn(sandbox_id)
    except AlreadyRunning:  # of a node that was killed while it built: the lock says that none builds now
        await _end(await launcher.attach(sandbox_id))
        return await launcher.spawn(sandbox_id)


async def _end(keeper: Keeper) -> None:
    try:
        await keeper.request("end", timeout_s=END_TIMEOUT_S)
    except (PerdureError, TimeoutError):
        pass  # it is gone, or the next build ends it
    keeper.close()


async def _refuse(call: GuestCall) -> None:
    raise GuestFailed(f"the idle guest of a template asked for {call.method} {call.path}")


def _died(event: dict[str, object]) -> MachineFailed:
    return MachineFailed(
        f"the template's machine ended while it booted: {event.get('cause')}: {event.get('detail')}",
        hint="fcrun doctor shows whether this machine can run guests.",
    )


def _sweep(folder: Path, name: str) -> None:
    """Remove what a node that was killed left half-made; the lock says that nobody makes it now.

    Not ``NAME-DIGEST.new``: that is on its way from another machine, under a lock of its own.
    """
    for path in folder.glob(f"{name}.*.new"):
        shutil.rmtree(path, ignore_errors=True)


@contextlib.asynccontextmanager
async def _alone(path: Path) -> AsyncIterator[None]:
    """Hold the lock file, against other processes and other tasks of this one."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    waiting = asyncio.get_running_loop().run_in_executor(None, fcntl.flock, descriptor, fcntl.LOCK_EX)
    try:
        await asyncio.shield(waiting)
    except asyncio.CancelledError:  # the thread still waits with the descriptor
        waiting.add_done_callback(lambda _: os.close(descriptor))
        raise
    try:
        yield
    finally:
        os.close(descriptor)


async def cpu(launcher: Launcher) -> tuple[str, int]:
    """(vendor, family) of the CPU below the line (proc_cpuinfo(5)); on Arm the implementer and the part."""
    known = _cpus.get(launcher.address)
    if known is None:
        output = bytearray()
        await launcher.run(["cat", "/proc/cpuinfo"], output=output.extend)
        known = _cpus[launcher.address] = cpu_facts(output.decode(errors="replace"))
    return known


def cpu_facts(cpuinfo: str) -> tuple[str, int]:
    """(vendor, family) from the text of /proc/cpuinfo."""
    values: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        name, separator, value = line.partition(":")
        if separator:
            values.setdefault(name.strip(), value.strip())
    vendor = values.get("vendor_id") or values.get("CPU implementer") or "unknown"
    family = values.get("cpu family") or values.get("CPU part") or "0"
    return vendor, int(family, 0)
