"""What a sandbox has besides its image: which drives its machine needs for that, and how its guest mounts them.

A drive cannot be added to a machine that runs, nor to one that is restored: only another file put in the place of one
that its template was booted with. So a sandbox with volumes starts from a template that has so many more drives, and a
volume that is only read has a drive that is read-only from the boot on: Firecracker opens its file for reading, and
whatever the guest's kernel is made to do, it cannot write it.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from perdure.errors import InvalidValue
from perdure.execution.machine.configuration import READ_ONLY, WRITABLE, volume_drives
from perdure.model import Mount, MountKind, SandboxSpec

VOLUMES_MAX = 8  # of one sandbox
_FIRST_DEVICE = ord("c")  # vda is the image, vdb the overlay
_WAIT_MS = 30_000  # for the guest's kernel to see a drive's size
# linux/mount.h
_FLAGS = {"ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "noatime": 1024}
_OFF = {"rw": 1, "suid": 2, "dev": 4, "exec": 8, "atime": 1024}
_TMPFS_FLAGS = 2 | 4 | 8  # as docker has it: nosuid, nodev, noexec
_TMPFS_DATA = re.compile(r"(size=[0-9]+[kKmMgG%]?|mode=0?[0-7]{1,4}|(uid|gid|nr_inodes)=[0-9]+[kKmMgG]?)\Z")


@dataclass(frozen=True)
class Drive:
    """One volume in a machine."""

    id: str
    device: str  # in the guest
    volume: str
    read_only: bool


def checked(mounts: Sequence[Mount]) -> list[Mount]:
    """The same with their paths made simple. Raises InvalidValue."""
    found: list[Mount] = []
    access: dict[str, bool] = {}
    for mount in mounts:
        target = posixpath.normpath(mount.target)
        if not mount.target.startswith("/") or "\0" in mount.target:
            raise InvalidValue(f"invalid mount path {mount.target!r}: it must be absolute", hint="-v NAME:/a/path")
        if target.lstrip("/") == "":
            raise InvalidValue("a mount cannot be at /: that is the image")
        if any(one.target == target for one in found):
            raise InvalidValue(f"duplicate mount point: {target}")
        if mount.kind is MountKind.VOLUME and access.setdefault(mount.source, mount.read_only) != mount.read_only:
            raise InvalidValue(f"volume {mount.source} is mounted twice, once read-only and once not")
        if mount.kind is MountKind.TMPFS:
            _tmpfs(mount)
        found.append(msgspec.structs.replace(mount, target=target))
    if len({mount.source for mount in found if mount.kind is MountKind.VOLUME}) > VOLUMES_MAX:
        raise InvalidValue(f"a sandbox has at most {VOLUMES_MAX} volumes")
    return found


def volumes_of(spec: SandboxSpec) -> dict[str, bool]:
    """Whether it is only read, by name; those that are written first."""
    found = {mount.source: mount.read_only for mount in spec.mounts if mount.kind is MountKind.VOLUME}
    return dict(sorted(found.items(), key=lambda one: one[1]))


def writes_volumes(spec: SandboxSpec) -> list[str]:
    """The names of those."""
    return [name for name, read_only in volumes_of(spec).items() if not read_only]


def shape_of(spec: SandboxSpec) -> str:
    """Of the drives that its machine needs; empty: none but image and overlay."""
    return "".join(READ_ONLY if read_only else WRITABLE for read_only in volumes_of(spec).values())


def drives_of(spec: SandboxSpec) -> list[Drive]:
    """In the order in which the guest sees them."""
    volumes = volumes_of(spec)
    return [
        Drive(drive, f"/dev/vd{chr(_FIRST_DEVICE + number)}", name, read_only)
        for number, (drive, (name, read_only)) in enumerate(
            zip(volume_drives(shape_of(spec)), volumes.items(), strict=True)
        )
    ]


def steps(spec: SandboxSpec) -> list[tuple[str, ...]]:
    """The orders for guestd's file tools (guest/attach.c) that mount them, parents first: before files are put in."""
    devices = {drive.volume: drive.device for drive in drives_of(spec)}
    return [
        _volume(mount, devices[mount.source]) if mount.kind is MountKind.VOLUME else _tmpfs(mount)
        for mount in sorted(spec.mounts, key=lambda mount: _depth(mount.target))
        if mount.kind is not MountKind.FOLDER
    ]


def places(spec: SandboxSpec, volumes: Iterable[str]) -> list[str]:
    """The folders that an image declares as volumes, less those where something else is mounted: docker makes one
    without a name for each; here they are of the sandbox's own disk."""
    taken = {"/", *(mount.target for mount in spec.mounts)}
    return sorted({posixpath.normpath(f"/{volume.lstrip('/')}") for volume in volumes} - taken)


def late_steps(spec: SandboxSpec, volumes: Iterable[str] = ()) -> list[tuple[str, ...]]:
    """The same for what must be full before: a folder that was copied in and is only read from then on; and what is
    written below what is not, as the root of a sandbox that is only read. That is told of each mount by itself, so
    these are mounted over themselves. ``volumes``: that the image declares."""
    read_only = {mount.target: mount.read_only for mount in spec.mounts if mount.kind is MountKind.FOLDER}
    read_only |= dict.fromkeys(places(spec, volumes), False)
    sealed = ["/"] * spec.read_only + [f"{target}/" for target, only_read in read_only.items() if only_read]
    return [
        ("mount", target, "bind", target, str(_FLAGS["ro"] if read_only[target] else 0), "", "0", "")
        for target in sorted(read_only, key=_depth)
        if read_only[target] or target.startswith((*sealed,))
    ]


def _depth(target: str) -> int:
    return target.count("/")


def _volume(mount: Mount, device: str) -> tuple[str, ...]:
    flags = _FLAGS["nodev"] | (_FLAGS["ro"] if mount.read_only else 0)
    fills = "" if mount.read_only or mount.no_copy else "c"
    return ("mount", device, "ext4", mount.target, str(flags), "", str(_WAIT_MS), fills)


def _tmpfs(mount: Mount) -> tuple[str, ...]:
    """Raises InvalidValue for an option that is none of a tmpfs."""
    flags, data = _TMPFS_FLAGS, []
    for option in mount.options:
        if option in _FLAGS:
            flags |= _FLAGS[option]
        elif option in _OFF:
            flags &= ~_OFF[option]
        elif _TMPFS_DATA.match(option):
            data.append(option)
        else:
            raise InvalidValue(
                f"tmpfs at {mount.target}: unknown option {option!r}",
                hint="It takes size=64m, mode=1777, uid=, gid=, nr_inodes=, ro, exec, suid and dev.",
            )
    if mount.read_only:
        flags |= _FLAGS["ro"]
    if not any(option.startswith("mode=") for option in data):
        data.append("mode=1777")
    return ("mount", "tmpfs", "tmpfs", mount.target, str(flags), ",".join(data), "0", "")
