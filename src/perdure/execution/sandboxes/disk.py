"""The writable disk of a sandbox: a sparse ext4 file, copied from an empty one that is made once per size."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

from perdure.errors import NoSpace, Unavailable, Unsupported
from perdure.execution.snapshots.store import space_checked
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
    """A copy of a disk as it is at one moment, while its machine stands still for as short as can be.

    ``begin`` while the machine runs, ``finish`` while it stands still. Where the file system has clones, all is done by
    one in ``finish``. Elsewhere ``begin`` copies, and ``finish`` copies again what differs by then: it reads both
    files, mostly from the page cache, and writes little. A context manager. Raises NoSpace.
    """

    def __init__(self, source: Path, target: Path) -> None:
        self._path = target
        self._source = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._target = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except BaseException:
            os.close(self._source)
            raise
        self._clones = False

    def __enter__(self) -> Copy:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._source)
        os.close(self._target)

    def begin(self) -> None:
        self._clones = reflink.clone(self._source, self._target)
        if not self._clones:
            with space_checked(str(self._path)):
                for _ in sparse.copy(self._source, self._target):
                    pass

    def finish(self) -> None:
        if self._clones:
            reflink.clone(self._source, self._target)
            return
        with space_checked(str(self._path)):
            sparse.bring_up_to_date(self._source, self._target)


def clone(source: Path, target: Path) -> None:
    """A copy of a disk that nobody writes to meanwhile; shares its blocks where the file system can. Raises NoSpace."""
    with Copy(source, target) as copy:
        copy.begin()


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


def admit(folder: Path, needed_bytes: int, what: str) -> None:
    """Raises NoSpace unless ``needed_bytes`` fit and RESERVE_BYTES stay free."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes + RESERVE_BYTES:
        wanted_mib = (needed_bytes + RESERVE_BYTES) // MEBIBYTE
        raise NoSpace(
            f"{what} needs {wanted_mib} MiB free at {folder}, and {free // MEBIBYTE} MiB are",
            hint="Free some space, or remove sandboxes with `fcrun rm`.",
            free_bytes=free,
        )
