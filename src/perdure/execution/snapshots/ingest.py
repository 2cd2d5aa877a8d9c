"""What is being stored: the files in ``ingest/`` of a store. Each is locked by its writer, until that ends or dies.

Most are blobs that are not whole yet. ``*.claim`` lists what a thread has stored by now and nobody names yet: digests,
one in a line. A sweep deletes the files that nobody holds, and keeps what the others claim (docs/formats/manifest.md).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import threading
from pathlib import Path
from typing import IO

from perdure.linux import locks

BUFFER_BYTES = 1 << 20
_CLAIM = ".claim"


class Claims(threading.local):
    """Of each thread: what it claims, while it does. Its methods are for moments in which no sweep is under way."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[bytes] | None = None

    @property
    def opened(self) -> bool:
        return self._file is not None

    def open(self) -> None:
        self._path, self._file = begin(self._folder, _CLAIM, buffering=0)

    def add(self, digest: str) -> None:
        """Claim a blob or snapshot; nothing where the thread has no claim open. Raises OSError."""
        if self._file is not None:
            data = f"{digest}\n".encode()
            while data:  # a disk that gets full takes the half of it, and says so at the next write only
                data = data[self._file.write(data) :]

    def close(self) -> None:
        """At any time: what was claimed is named now, or not needed."""
        assert self._file is not None
        self._path.unlink(missing_ok=True)
        self._file.close()
        self._file = None


def begin(folder: Path, suffix: str = "", buffering: int = BUFFER_BYTES) -> tuple[Path, IO[bytes]]:
    """A new file of this process, locked while it is open. No sweep may be under way, which sees it before."""
    path = folder / f"{os.getpid()}-{secrets.token_hex(6)}{suffix}"
    file = path.open("xb", buffering=buffering)
    fcntl.flock(file, fcntl.LOCK_EX)
    return path, file


def claimed(folder: Path) -> set[str]:
    """What living threads claim (digests)."""
    claims: set[str] = set()
    for path in folder.glob(f"*{_CLAIM}"):
        with contextlib.suppress(FileNotFoundError):  # its owner is done in this moment
            claims.update(path.read_text().split() if locks.is_held(path) else [])
    return claims


def left_over(folder: Path, *, dry_run: bool = False) -> int:
    """Delete what writers left that died; the number of files."""
    dead = [path for path in folder.iterdir() if not locks.is_held(path)]
    for path in dead if not dry_run else []:
        path.unlink(missing_ok=True)  # of one that is just giving up
    return len(dead)
