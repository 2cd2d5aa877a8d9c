"""The writable disk of a sandbox: a sparse ext4 file, copied from an empty one that is made once per size."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from perdure.errors import NoSpace, Unavailable, Unsupported
from perdure.execution.sandboxes import keptdisks
from perdure.execution.snapshots import diskchanges
from perdure.execution.snapshots.diskchanges import Changes
from perdure.execution.snapshots.diskspace import space_checked
from perdure.formats.blockmap import BLOCK
from perdure.formats.diskindex import DiskIndex, Stamp
from perdure.host.paths import Home
from perdure.linux import reflink, sparse

RESERVE_BYTES = 256 << 20  # never begin anything with less than this free
MEBIBYTE = 1 << 20
FSCK_LINES = 4  # of what it finds, told


def make(empty_disks: Path, size_mib: int, target: Path) -> None:
    """Write an empty disk of this apparent size to ``target``. Raises NoSpace, Unsupported (no mke2fs)."""
    source = empty_disks / f"{size_mib}.ext4"
    if not source.exists():
        _format(source, size_mib)
    _run(["cp", "--sparse=always", "--reflink=auto", str(source), str(target)], target)


class Copy:
    """What a disk holds at one moment, while its machine stands still for as short as can be.

    ``begin`` while the machine runs and its workload is frozen, ``finish`` once its memory is captured: Firecracker may
    still do requests of the guest until then. Where the file system has clones, all is done by one in ``finish``.
    Elsewhere ``begin`` copies what changed since the snapshot of ``index`` (without one: all), and ``finish`` sees to
    it that nothing was written since. Raises NoSpace. Each opens the files itself, as a thread may outlive who waits.
    """

    def __init__(self, source: Path, target: Path, index: DiskIndex | None) -> None:
        self._paths = source, target
        self._index = index
        self._stamp: Stamp | None = None  # of the source, when it was cloned
        self._changes: Changes | None = None

    def begin(self) -> None:
        if self._clone():
            self._stamp = diskchanges.stamp_of(self._paths[0])
        else:
            self._copy()

    def finish(self) -> None:
        source, _ = self._paths
        if self._stamp is not None:
            if self._index is None or diskchanges.stamp_of(source) != self._index.stamp:
                self._stamp = diskchanges.stamped(source)
            self._clone()
        elif self._changes is None or diskchanges.stamp_of(source) != self._changes.stamp:
            self._copy()

    def changes(self) -> Changes:
        """After ``finish``; the machine may run. What is not in their ranges the copy may lack."""
        if self._changes is None:
            assert self._stamp is not None
            self._changes = diskchanges.changes(self._paths[1], self._index, copy_of=self._stamp)
        return self._changes

    def _clone(self) -> bool:
        with _opened(*self._paths, "wb") as (old, new):
            return reflink.clone(old, new)

    def _copy(self) -> None:
        source, target = self._paths
        self._changes = diskchanges.changes(source, self._index)
        with _opened(source, target, "wb") as (old, new):
            if self._changes.ranges is None:
                for _ in sparse.copy(old, new):
                    pass
            else:
                os.ftruncate(new, self._changes.stamp.size)
                for first, end in self._changes.ranges:
                    sparse.copy_range(old, new, first * BLOCK, end * BLOCK)


def clone(source: Path, target: Path) -> None:
    """A copy of a disk that nobody writes to meanwhile; shares its blocks where the file system can. Raises NoSpace."""
    with _opened(source, target, "xb") as (old, new):
        if not reflink.clone(old, new):
            for _ in sparse.copy(old, new):
                pass


@contextlib.contextmanager
def _opened(source: Path, target: Path, mode: Literal["wb", "xb"]) -> Iterator[tuple[int, int]]:
    """Raises NoSpace for the target, also where there is no room for its name."""
    with (
        space_checked(str(target)),
        source.open("rb", buffering=0) as old,
        target.open(mode, buffering=0) as new,
    ):
        yield old.fileno(), new.fileno()


def write_back(path: Path) -> None:
    """Bring what was written to the disk, so that Firecracker does not wait for it while the machine stands still: it
    syncs the file in every capture. Raises NoSpace."""
    with path.open("rb", buffering=0) as file, space_checked(str(path)):
        os.fdatasync(file.fileno())


def _format(path: Path, size_mib: int) -> None:
    program = _program("mke2fs")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_suffix(f".{os.getpid()}.new")
    try:
        with fresh.open("wb") as file:
            file.truncate(size_mib * MEBIBYTE)
        # everything is initialized now, so that the guest's kernel does not write inode tables in the background
        options = "lazy_itable_init=0,lazy_journal_init=0,nodiscard"
        _run(
            [program, "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-J", "size=4", "-E", options, str(fresh)],
            path,
        )
        _sync(fresh)  # every later sandbox is a copy of it: after a power loss it is whole, or not there
        fresh.replace(path)
        _sync(path.parent)
    finally:
        fresh.unlink(missing_ok=True)


def problem_of(path: Path) -> str:
    """What fsck finds in a disk that nobody uses; empty: its file system is whole.

    It was mounted when it was captured, so its journal is replayed first (the file changes), as the guest would. Raises
    Unsupported (no e2fsck).
    """
    program = _program("e2fsck")
    for argv, fine in (([program, "-y", "-E", "journal_only", str(path)], (0, 1)), ([program, "-fn", str(path)], (0,))):
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode not in fine:
            said = [line.strip() for line in done.stdout.decode(errors="replace").splitlines()]
            told = [line for line in said if line and not line.startswith(("e2fsck ", "Pass ", str(path)))]
            return "; ".join(told[:FSCK_LINES]) or f"e2fsck ended with status {done.returncode}"
    return ""


def _program(name: str) -> str:
    found = shutil.which(name) or next((p for p in (f"/sbin/{name}", f"/usr/sbin/{name}") if os.access(p, os.X_OK)), "")
    if not found:
        raise Unsupported(f"{name} is not installed", hint="Install the package e2fsprogs.")
    return found


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _run(argv: list[str], target: Path) -> None:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        message = f"{argv[0]} failed for {target}: {done.stderr.strip()}"
        if os.strerror(errno.ENOSPC) in done.stderr:
            raise NoSpace(message, hint="Free some space, or remove sandboxes with `fcrun rm`.")
        raise Unavailable(message)


def admit(home: Home, folder: Path, needed_bytes: int, what: str, *, trims: bool = True) -> None:
    """Raises NoSpace unless ``needed_bytes`` fit into ``folder`` and RESERVE_BYTES stay free. Where they do not, kept
    disks of suspended sandboxes go first (``trims``)."""
    floor_bytes = needed_bytes + RESERVE_BYTES
    if trims and shutil.disk_usage(folder).free < floor_bytes:
        keptdisks.trim(home.sandboxes, floor_bytes=floor_bytes)
    free = shutil.disk_usage(folder).free
    if free < floor_bytes:
        raise NoSpace(
            f"{what} needs {floor_bytes // MEBIBYTE} MiB free at {folder}, and {free // MEBIBYTE} MiB are",
            hint="Free some space, or remove sandboxes with `fcrun rm`.",
            free_bytes=free,
        )
