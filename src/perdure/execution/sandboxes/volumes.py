"""Volumes of a node: disks that outlive their sandboxes. ``volumes/NAME/`` holds ``volume.json`` and ``data``, an ext4
file of a fixed size, sparse.

Who has a volume is not written down here: it is what the records of the sandboxes say, so that no crash can leave the
two in disagreement. A sandbox has it *attached* while a machine of it may live, and while it is suspended: its guest's
kernel has the file system mounted then, and what anybody else wrote would be lost or would destroy it. One sandbox at a
time writes; any number read where none writes.

What a suspended guest remembers of the file system holds only for the file as it was then. So its size, inode and time
of modification are taken down at the suspend (``mark``), and compared before the guest goes on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from perdure.errors import Conflict, InvalidValue, NotFound, PerdureError, ProtocolError
from perdure.execution.sandboxes import disk
from perdure.execution.sandboxes.keptdisks import SECTOR_BYTES
from perdure.execution.sandboxes.mounts import checked, volumes_of
from perdure.execution.sandboxes.record import Record
from perdure.execution.sandboxes.states import LIVE
from perdure.execution.snapshots import diskchanges
from perdure.execution.snapshots.diskspace import space_checked
from perdure.host.paths import Home
from perdure.linux import durable
from perdure.model import (
    DEFAULT_VOLUME_MIB,
    Frozen,
    Mount,
    MountKind,
    SandboxSpec,
    SandboxState,
    VolumeInfo,
    VolumeUser,
)

VERSION = 1
Mark = list[int]  # size, inode, time of modification in ns
SIZE_MIB = (16, 1 << 22)
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}\Z")
_MEBIBYTE = 1 << 20
# ext4: bytes 96 to 99 of the superblock, which begins at byte 1024, are s_feature_incompat (fs/ext4/ext4.h)
_INCOMPAT_AT, _NEEDS_RECOVERY = 1024 + 96, 4

_log = logging.getLogger(__name__)


_Users = list[VolumeUser]  # Volumes.list hides the builtin inside the class


class _Record(Frozen, frozen=True, kw_only=True):
    """``volume.json``."""

    version: int
    created: float
    size_mib: int
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    anonymous: bool = False


class Volumes:
    """``records``: of all sandboxes."""

    def __init__(self, home: Home, records: Callable[[], Iterable[Record]]) -> None:
        self._home, self._records = home, records

    def _users(self, name: str) -> _Users:
        return [
            VolumeUser(
                id=record.id,
                name=record.name,
                read_only=volumes[name],
                attached=record.state in LIVE or record.state is SandboxState.SUSPENDED,
            )
            for record in self._records()
            if name in (volumes := volumes_of(record.spec))
        ]

    # -- what there is ------------------------------------------------------------------------------------------------
    def names(self) -> list[str]:
        return sorted(path.name for path in self._home.volumes.iterdir() if _NAME.match(path.name))

    def list(self) -> list[VolumeInfo]:
        """By name; one whose record does not read is named in the log."""
        found = []
        for name in self.names():
            try:
                found.append(self.get(name))
            except PerdureError as error:
                _log.error("volume %s: %s", name, error)
        return found

    def get(self, name: str) -> VolumeInfo:
        """Raises NotFound, ProtocolError (its record does not read)."""
        record, path = self._check_whole(name), self.path(name)
        used = path.stat().st_blocks * SECTOR_BYTES
        return VolumeInfo(
            name=name,
            created=record.created,
            size_bytes=record.size_mib * _MEBIBYTE,
            used_bytes=used,
            labels=record.labels,
            anonymous=record.anonymous,
            path=str(path),
            users=self._users(name),
        )

    def _check_whole(self, name: str) -> _Record:
        record, path = self._load(name), self.path(name)
        if not path.exists():
            raise ProtocolError(f"volume {name} has lost its data: {path} is not there")
        return record

    def path(self, name: str) -> Path:
        return self._home.volumes / name / "data"

    def _load(self, name: str) -> _Record:
        if not _NAME.match(name):
            raise NotFound(f"no such volume: {name}", hint="`fcrun volume ls` lists all.")
        path = self._home.volumes / name / "volume.json"
        try:
            record = msgspec.json.decode(path.read_bytes(), type=_Record)
        except FileNotFoundError:
            raise NotFound(f"no such volume: {name}", hint="`fcrun volume ls` lists all.") from None
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ProtocolError(f"{path} does not read: {error}") from error
        if record.version > VERSION:
            raise ProtocolError(f"{path} has version {record.version}", hint="Update Perdure: a newer one wrote it.")
        return record

    # -- making and removing: blocking --------------------------------------------------------------------------------
    def create(
        self, name: str, size_mib: int | None, labels: Mapping[str, str], *, anonymous: bool = False
    ) -> VolumeInfo:
        """Durable when this returns. One of that name that is there is taken as it is, as docker does; but not where
        another size was wished for.

        Raises InvalidValue, Conflict, NoSpace, Unsupported (no mke2fs).
        """
        if not _NAME.match(name):
            raise InvalidValue(
                f"invalid volume name {name!r}",
                hint="Use at most 128 letters, digits, '_', '.' and '-', beginning with a letter or a digit.",
            )
        size = DEFAULT_VOLUME_MIB if size_mib is None else size_mib
        if not SIZE_MIB[0] <= size <= SIZE_MIB[1]:
            raise InvalidValue(f"a volume has {SIZE_MIB[0]} MiB to {SIZE_MIB[1]} MiB, not {size}")
        record = _Record(version=VERSION, created=time.time(), size_mib=size, labels=dict(labels), anonymous=anonymous)
        target = self._home.volumes / name
        if not target.exists():
            disk.admit(self._home, self._home.volumes, 0, "a volume")
            self._write(target, record)
        known = self._load(name)
        if size_mib is not None and known.size_mib != size_mib:
            raise Conflict(
                f"volume {name} is there already, and has {known.size_mib} MiB",
                hint=f"Take another name, or remove that one: fcrun volume rm {name}",
            )
        return self.get(name)

    def _write(self, target: Path, record: _Record) -> None:
        fresh = self._home.volumes / f".{target.name}.{secrets.token_hex(4)}.new"
        with space_checked(f"volume {target.name}"):
            fresh.mkdir(mode=0o700)
            try:
                disk.make(self._home.root / "disks", record.size_mib, fresh / "data")
                (fresh / "data").chmod(0o600)
                (fresh / "volume.json").write_bytes(msgspec.json.encode(record))
                for path in (*fresh.iterdir(), fresh):
                    durable.sync(path)
                with contextlib.suppress(FileExistsError, NotADirectoryError):  # somebody was quicker
                    _renamed(fresh, target)
                durable.sync(target.parent)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)

    def prepared(self, spec: SandboxSpec) -> SandboxSpec:
        """The wish of a new sandbox, its mounts checked, the volumes that it names there. Where it fails none is left
        that has no name."""
        found: list[Mount] = []
        try:
            for mount in checked(spec.mounts):
                if mount.kind is MountKind.VOLUME:
                    name = mount.source or anonymous_name()
                    self.create(name, None, {}, anonymous=not mount.source)
                    mount = msgspec.structs.replace(mount, source=name)
                found.append(mount)
        except BaseException:
            self.take_back(spec, msgspec.structs.replace(spec, mounts=found))
            raise
        return msgspec.structs.replace(spec, mounts=found)

    def take_back(self, wish: SandboxSpec, made: SandboxSpec) -> None:
        """Remove what ``prepared`` made for this wish and nobody can know of. Raises nothing."""
        known = {mount.source for mount in wish.mounts}
        fresh = [mount for mount in made.mounts if mount.source not in known]
        self.remove_anonymous(msgspec.structs.replace(made, mounts=fresh))

    def remove(self, name: str) -> Path:
        """It is gone by this, durably; delete the folder that is returned, which may take long.

        Raises NotFound, Conflict (it belongs to a sandbox).
        """
        place = self._home.volumes / name
        if not _NAME.match(name) or not place.exists():
            raise NotFound(f"no such volume: {name}", hint="`fcrun volume ls` lists all.")
        if users := self._users(name):
            listed = ", ".join(f"{user.name} ({user.id})" for user in users)
            raise Conflict(
                f"volume {name} is in use by {listed}", hint="Remove these sandboxes first: fcrun rm", users=len(users)
            )
        gone = self._home.volumes / f".{name}.{secrets.token_hex(4)}.gone"
        place.rename(gone)
        durable.sync(place.parent)
        return gone

    def remove_anonymous(self, spec: SandboxSpec) -> None:
        """Those that were made for a sandbox that is gone. Raises nothing."""
        for name in volumes_of(spec):
            try:
                if self._load(name).anonymous:
                    discard([self.remove(name)])
            except (PerdureError, OSError) as error:
                _log.info("volume %s stays: %s", name, error)

    def sweep(self) -> None:
        """What a node that was killed had half-made, or half-deleted."""
        for path in self._home.volumes.glob(".*"):
            shutil.rmtree(path, ignore_errors=True)

    # -- attaching: quick, with no wait between the look and the change of the record ---------------------------------
    def check_free(self, sandbox_id: str, spec: SandboxSpec) -> None:
        """Raises NotFound, and Conflict where another sandbox has one of its volumes attached."""
        for name, read_only in volumes_of(spec).items():
            self._check_whole(name)
            others = [user for user in self._users(name) if user.id != sandbox_id and user.attached]
            if not read_only and others:
                raise _taken(name, others[0], "and it can be written by one sandbox only")
            if writers := [user for user in others if not user.read_only]:
                raise _taken(name, writers[0], "which writes it")
            if read_only and not _is_clean(self.path(name)):
                raise Conflict(
                    f"volume {name} was not closed: the machine that wrote it died",
                    hint=f"Mount it writable once, which repairs it: fcrun run --rm -v {name}:/volume IMAGE true",
                )

    def check_unchanged(self, name: str, spec: SandboxSpec, marks: Mapping[str, Sequence[int]]) -> None:
        """What a guest had mounted when it was captured is as it was then. Raises Conflict, NotFound."""
        for volume in volumes_of(spec):
            self._check_whole(volume)
            if list(marks.get(volume, ())) != _mark(self.path(volume)):
                raise Conflict(
                    f"volume {volume} has changed since sandbox {name} was suspended: what its memory knows of it is "
                    "not true any more",
                    hint=f"A sandbox that has exited starts anew, on its files: fcrun start {name}. One that is "
                    f"suspended needs the volume as it was: {self.path(volume)}",
                )

    def mark(self, spec: SandboxSpec) -> dict[str, Mark]:
        """What its volumes are known by, now that its machine stands still; durable. Raises OSError."""
        marks = {}
        for name, read_only in volumes_of(spec).items():
            path = self.path(name)
            if not read_only:
                diskchanges.stamped(path)  # so that the time of every later write is another one
                durable.sync(path)
            marks[name] = _mark(path)
        return marks

    def write_back(self, spec: SandboxSpec) -> None:
        """So that the capture does not wait for it while the machine stands still. Raises OSError, NoSpace."""
        for name, read_only in volumes_of(spec).items():
            if not read_only:
                disk.write_back(self.path(name))


def anonymous_name() -> str:
    """As docker's: 64 hex digits."""
    return secrets.token_hex(32)


def discard(folders: Iterable[Path]) -> None:
    """Of ``remove``. Blocking."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _mark(path: Path) -> Mark:
    stamp = diskchanges.stamp_of(path)  # but for the boot: what is marked is synced
    return [stamp.size, stamp.inode, stamp.mtime_ns]


def _renamed(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError:
        if not target.exists():
            raise


def _is_clean(path: Path) -> bool:
    """Whether its file system can be mounted without writing to it."""
    with path.open("rb", buffering=0) as file:
        flags = int.from_bytes(os.pread(file.fileno(), 4, _INCOMPAT_AT), "little")
    return not flags & _NEEDS_RECOVERY


def _taken(name: str, user: VolumeUser, why: str) -> Conflict:
    return Conflict(
        f"volume {name} is attached to sandbox {user.name} ({user.id}), {why}",
        hint=f"It is free once that one is stopped: fcrun stop {user.name}. A suspended one keeps it. "
        "Any number of sandboxes can read one, with :ro in each.",
        sandbox=user.id,
    )
