"""Templates: booted, idle machines with no image attached, from which every sandbox starts.

    TEMPLATES/NAME/template.json     what it was made from, and the digest of its content
                   state             Firecracker's device state
                   memory            the guest's memory: raw, sparse, blocks of zeros are holes
                   map               which blocks are not zeros (docs/formats/layer.md, a flat map)

NAME is a digest of everything that the content depends on: another kernel, guestd, Firecracker, CPU or shape is
another template. The old one stays: snapshots may lie over it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from perdure.errors import (
    AlreadyRunning,
    GuestFailed,
    MachineFailed,
    NotFound,
    PerdureError,
    SnapshotInvalid,
    Unsupported,
)
from perdure.execution.guest.session import GuestCall, GuestSession
from perdure.execution.machine.configuration import BOOT_ARGS, PLACEHOLDER_BYTES
from perdure.execution.machine.remote import Keeper, Launcher
from perdure.execution.snapshots.store import space_checked
from perdure.formats import blockmap
from perdure.formats.blockmap import BASE, BLOCK, MEMORY, ROLE_FLAT, Run
from perdure.formats.manifest import Facts
from perdure.host.assets import Assets
from perdure.host.paths import Home
from perdure.host.progress import Progress, silent
from perdure.linux import durable, sparse
from perdure.model import LauncherAddress

BOOT_TIMEOUT_S = 120.0
END_TIMEOUT_S = 30.0
VERSION = 1
DIFF_LIMIT_MIB = 3072  # diff snapshots of larger guests are corrupt before Firecracker 1.15
_STEP = 256  # blocks read at a time
_ZERO_BLOCK = bytes(BLOCK)


@dataclass(frozen=True)
class Template:
    """A template on this node. Start from it with the keeper's ``restore`` of a raw file and ``swap``."""

    name: str  # of its folder
    state: Path
    memory: Path  # sparse raw file
    size: int  # bytes of guest memory
    digest: str  # 64 hex digits, of its content: what the lowest memory layers are a difference to
    facts: Facts

    def runs(self) -> list[Run]:
        """Which blocks are not zeros. Raises SnapshotInvalid."""
        held = blockmap.decode(self.memory.with_name("map").read_bytes())
        if (held.kind, held.role, held.blocks, held.layers) != (MEMORY, ROLE_FLAT, self.size // BLOCK, 0):
            raise SnapshotInvalid(f"the map of template {self.name} is the map of something else")
        return held.runs


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """``template.json``."""

    version: int
    digest: str
    facts: Facts


_seen: dict[Path, tuple[object, ...]] = {}  # templates whose content was hashed, and what their files were then
_cpus: dict[LauncherAddress, tuple[str, int]] = {}  # a launcher's kernel does not change its CPU


async def ensure(
    home: Home,
    assets: Assets,
    launcher: Launcher,
    *,
    vcpus: int,
    memory_mib: int,
    progress: Progress = silent,
) -> Template:
    """The template of this shape, built by one cold boot if there is none; concurrent calls build one.

    Raises Unsupported (a guest that this Firecracker cannot capture), MachineFailed and GuestFailed (it did not
    boot), NoSpace.
    """
    check_supported(assets.firecracker_version, memory_mib)
    vendor, family = await _cpu(launcher)
    parts = f"{VERSION} {assets.digest} {vendor} {family} {vcpus} {memory_mib} {BOOT_ARGS}"
    name = hashlib.sha256(parts.encode()).hexdigest()[:16]
    try:
        return await asyncio.to_thread(load, home.templates, name)
    except (NotFound, SnapshotInvalid):
        pass  # built below
    async with _alone(home.templates / f"{name}.lock"):
        try:
            return await asyncio.to_thread(load, home.templates, name)
        except NotFound:
            pass
        except SnapshotInvalid:  # nothing can start from it, and nothing over it can be restored
            await asyncio.to_thread(shutil.rmtree, home.templates / name)
        folder = home.templates / f"{name}.new"
        await asyncio.to_thread(_empty, folder)
        try:
            progress("Booting the template", 0, 3)
            await _boot(launcher, assets, folder, name, vcpus=vcpus, memory_mib=memory_mib, progress=progress)
            facts = Facts(
                firecracker=assets.firecracker_version,
                cpu_vendor=vendor,
                cpu_family=family,
                vcpus=vcpus,
                memory_mib=memory_mib,
                kernel=await asyncio.to_thread(_file_digest, assets.vmlinux),
                guestd=await asyncio.to_thread(_file_digest, assets.guest_initrd),
            )
            await asyncio.to_thread(seal, folder, home.templates / name, facts)
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, True)
        progress("Booting the template", 3, 3)
        return await asyncio.to_thread(load, home.templates, name)


def check_supported(firecracker: str, memory_mib: int) -> None:
    """Raises Unsupported where a diff snapshot of such a guest would be corrupt."""
    version = tuple(int(part) for part in firecracker.split(".")[:2])
    if memory_mib > DIFF_LIMIT_MIB and version < (1, 15):
        raise Unsupported(
            f"Firecracker {firecracker} cannot take diff snapshots of a guest with {memory_mib} MiB of memory",
            hint=f"Use at most {DIFF_LIMIT_MIB} MiB, or Firecracker 1.15 or newer (fcrun setup).",
        )


def load(folder: Path, name: str, digest: str = "") -> Template:
    """The template NAME in ``home.templates``; its content is hashed when it is new or has changed.

    ``digest``: the content that is meant. Machines that boot the same parts make templates of one name and different
    contents, and one that came from another machine is in a folder of its own (``adopted_name``).
    Raises NotFound, SnapshotInvalid.
    """
    if digest:
        for each in _names(name, digest):
            try:
                if _digest_in(folder / each) == digest:
                    return load(folder, each)
            except SnapshotInvalid:
                pass  # that one is damaged: perhaps another one is not
    place = folder / name
    try:
        record = msgspec.json.decode((place / "template.json").read_bytes(), type=_Record)
        files = [(place / part).stat() for part in ("state", "memory", "map")]
    except FileNotFoundError:
        raise NotFound(
            f"template {name} is not in {folder}", hint="Snapshots over it need the machine that they were made on."
        ) from None
    except msgspec.MsgspecError as error:
        raise SnapshotInvalid(f"{place / 'template.json'} does not read: {error}") from None
    if record.version != VERSION:
        raise SnapshotInvalid(f"template {name} has format version {record.version}, not {VERSION}")
    size = record.facts.memory_mib << 20
    template = Template(name, place / "state", place / "memory", size, record.digest, record.facts)
    signature = (record.digest, *((file.st_ino, file.st_size, file.st_mtime_ns) for file in files))
    if _seen.get(place) != signature:
        if files[1].st_size != size or _content_digest(place, template.runs()) != record.digest:
            raise SnapshotInvalid(
                f"template {name} does not have the content that it was made with: it was damaged or changed"
            )
        _seen[place] = signature
    return template


def adopted_name(name: str, digest: str) -> str:
    """The name of a template that was made on another machine, so that it is never taken for one made here."""
    return f"{name.partition('-')[0]}-{digest[:16]}"


def _names(name: str, digest: str) -> list[str]:
    return [name, name.partition("-")[0], adopted_name(name, digest)]


def _digest_in(place: Path) -> str:
    try:
        return msgspec.json.decode((place / "template.json").read_bytes(), type=_Record).digest
    except (OSError, msgspec.MsgspecError):
        return ""


async def _boot(
    launcher: Launcher, assets: Assets, folder: Path, name: str, *, vcpus: int, memory_mib: int, progress: Progress
) -> None:
    """Boot, wait until guestd is idle, capture ``state`` and ``memory`` into ``folder``, end."""
    drives = []
    for drive, read_only in (("image", True), ("overlay", False)):
        (folder / drive).write_bytes(bytes(PLACEHOLDER_BYTES))
        drives.append({"id": drive, "path": str(folder / drive), "read_only": read_only})
    keeper = await _spawn(launcher, f"template-{name}")
    session = GuestSession(_refuse)
    try:
        keeper.listen(lambda event: session.close(_died(event)))
        keeper.connect_channel(session)
        await keeper.request(
            "boot",
            firecracker=str(assets.firecracker),
            kernel=str(assets.vmlinux),
            initrd=str(assets.guest_initrd),
            boot_args=BOOT_ARGS,
            vcpus=vcpus,
            memory_mib=memory_mib,
            drives=drives,
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
        await keeper.request("capture", kind="full", folder=str(folder), end=True, timeout_s=BOOT_TIMEOUT_S)
        progress("Capturing the template", 2, 3)
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


def seal(captured: Path, target: Path, facts: Facts) -> None:
    """Make a template of the folder that ``state`` and the full ``memory`` were captured into; it becomes ``target``.

    Durable and complete, or not there. Raises NoSpace, MachineFailed (memory of another size).
    """
    with space_checked(str(target)):
        (captured / "memory").rename(captured / "full")
        runs = _without_zeros(captured / "full", captured / "memory", facts.memory_mib << 20)
        for part in ("full", "image", "overlay"):
            (captured / part).unlink(missing_ok=True)
        blocks = (facts.memory_mib << 20) // BLOCK
        held = blockmap.encode(runs, kind=MEMORY, role=ROLE_FLAT, blocks=blocks, layers=0)
        (captured / "map").write_bytes(held)
        record = _Record(version=VERSION, digest=_content_digest(captured, runs), facts=facts)
        (captured / "template.json").write_bytes(msgspec.json.encode(record))
        for path in (*captured.iterdir(), captured):
            durable.sync(path)
        captured.rename(target)
        durable.sync(target.parent)


def _without_zeros(source: Path, target: Path, size: int) -> list[Run]:
    """Copy the blocks that are not zeros; their runs."""
    runs: list[Run] = []
    with source.open("rb", buffering=0) as old, target.open("xb", buffering=0) as new:
        if os.fstat(old.fileno()).st_size != size:
            raise MachineFailed(f"Firecracker captured {os.fstat(old.fileno()).st_size} bytes of memory, not {size}")
        new.truncate(size)
        for place, length in list(sparse.extents(old.fileno())):
            for start in range(place, place + length, _STEP * BLOCK):
                data = os.pread(old.fileno(), min(_STEP * BLOCK, place + length - start), start)
                if data == bytes(len(data)):
                    continue
                runs += (
                    Run((start + at) // BLOCK, 1, BASE, (start + at) // BLOCK)
                    for at in range(0, len(data), BLOCK)
                    if data[at : at + BLOCK] != _ZERO_BLOCK
                )
        runs = blockmap.joined(runs)
        for run in runs:
            for first in range(run.first, run.first + run.length, _STEP):
                count = min(_STEP, run.first + run.length - first)
                data = os.pread(old.fileno(), count * BLOCK, first * BLOCK)
                while data:
                    written = os.pwrite(new.fileno(), data, first * BLOCK)
                    data, first = data[written:], first + written // BLOCK
    return runs


def _content_digest(folder: Path, runs: list[Run]) -> str:
    found = hashlib.sha256((folder / "state").read_bytes())
    found.update((folder / "map").read_bytes())
    with (folder / "memory").open("rb", buffering=0) as file:
        for run in runs:
            for first in range(run.first, run.first + run.length, _STEP):
                count = min(_STEP, run.first + run.length - first)
                found.update(os.pread(file.fileno(), count * BLOCK, first * BLOCK))
    return found.hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)


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


async def _cpu(launcher: Launcher) -> tuple[str, int]:
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
