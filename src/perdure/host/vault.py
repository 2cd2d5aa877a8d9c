"""The cache of assets: parts, each a few files with their SHA-256, so that a changed file is noticed.

    CACHE/assets.json            which parts there are: {"version": 1, "parts": {NAME: {key, facts, files}}}
    CACHE/lock                   held by who looks or changes
    CACHE/NAME/KEY/FILE          one part's files; KEY says what they were made from

A look compares size and time of change with what was recorded and hashes only where they differ.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perdure.errors import AssetTampered, NoRights, NoSpace

VERSION = 1


@dataclass(frozen=True)
class Part:
    """One part: its files by name, their SHA-256 (hex), and what is known about it."""

    key: str
    facts: Mapping[str, str]
    files: Mapping[str, Path]
    digests: Mapping[str, str]


class Vault:
    """The parts in one cache folder. Open it with ``open_vault``, which holds the lock."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._index = folder / "assets.json"
        self._parts: dict[str, Any] = _read_index(self._index)

    def get(self, name: str, key: str | None = None, *, thorough: bool = False) -> Part | None:
        """The recorded part (made from ``key``, if one is given), or None when there is none or a file is gone.

        Raises AssetTampered when a file's content is not what was recorded; ``thorough`` hashes in every case.
        """
        record = self._parts.get(name)
        if record is None or (key is not None and record["key"] != key):
            return None
        files, digests, touched = {}, {}, False
        for file_name, known in record["files"].items():
            path = self._folder / known["path"]
            try:
                found = path.stat()
            except FileNotFoundError:
                return None
            if thorough or (found.st_size, found.st_mtime_ns) != (known["size"], known["mtime_ns"]):
                _check_digest(path, known["sha256"])
                touched = touched or found.st_mtime_ns != known["mtime_ns"]
                known["mtime_ns"] = found.st_mtime_ns
            files[file_name], digests[file_name] = path, known["sha256"]
        if touched:
            self._write_index()
        return Part(record["key"], record["facts"], files, digests)

    def put(self, name: str, key: str, facts: Mapping[str, str], made: Mapping[str, Path]) -> Part:
        """Move the made files (they are on the same file system: see ``workshop``) into the part and record it."""
        folder = self._folder / name / hashlib.sha256(key.encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        files = {}
        for file_name, source in made.items():
            _sync(source)
            path = folder / file_name
            source.replace(path)
            status = path.stat()
            files[file_name] = {
                "path": str(path.relative_to(self._folder)),
                "sha256": file_digest(path),
                "size": status.st_size,
                "mtime_ns": status.st_mtime_ns,
            }
        _sync(folder)
        self._parts[name] = {"key": key, "facts": dict(facts), "files": files}
        self._write_index()
        part = self.get(name, key)
        assert part is not None
        return part

    def names(self) -> list[str]:
        return sorted(self._parts)

    @contextmanager
    def workshop(self) -> Iterator[Path]:
        """A temporary folder on the cache's file system, removed at the end."""
        with no_space(self._folder), tempfile.TemporaryDirectory(prefix=".making-", dir=self._folder) as folder:
            yield Path(folder)

    def require_space(self, size_bytes: int) -> None:
        """Raises NoSpace when fewer bytes are free."""
        free = shutil.disk_usage(self._folder).free
        if free < size_bytes:
            raise NoSpace(
                f"{self._folder} has {free >> 20:,} MiB free, and {size_bytes >> 20:,} MiB are needed",
                hint="Make space, or set PERDURE_CACHE to a folder on another disk.",
            )

    def _write_index(self) -> None:
        text = json.dumps({"version": VERSION, "parts": self._parts}, indent=1)
        with no_space(self._folder):
            write_durably(self._index, text.encode())


@contextmanager
def open_vault(folder: Path) -> Iterator[Vault]:
    """The vault in ``folder`` (made if needed), locked: a second opener waits. Raises NoRights, NoSpace."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except PermissionError as error:
        raise NoRights(
            f"cannot write to {folder}: {error.strerror}", hint="Run as root, or set PERDURE_CACHE."
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for leftover in folder.glob(".making-*"):  # of a maker that was killed: we hold the lock, so it is gone
            shutil.rmtree(leftover, ignore_errors=True)
        yield Vault(folder)
    finally:
        os.close(lock)


@contextmanager
def no_space(folder: Path) -> Iterator[None]:
    """Turn the disk's own complaint into NoSpace."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise NoSpace(f"no space left below {folder}", hint="Make space, then run the command again.") from error


def write_durably(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a file so that a crash leaves the old or the new one, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def file_digest(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_digest(path: Path, expected: str) -> None:
    found = file_digest(path)
    if found != expected:
        raise AssetTampered(
            f"{path} was changed: its SHA-256 is {found}, recorded is {expected}",
            hint=f"Find out who changed it. Then remove it (rm {path}) and run: fcrun setup",
            path=str(path),
        )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError:
        return {}  # not ours or damaged: everything is made again, nothing of it is trusted
    if not isinstance(index, dict) or index.get("version") != VERSION:
        return {}
    return dict(index["parts"])
