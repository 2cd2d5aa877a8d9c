"""Blobs of images, as registries and archives have them: each once, for all images that need it.

    FOLDER/blobs/HEX            layers as they came, configurations, manifests; HEX is the digest of the bytes
    FOLDER/incoming/HEX         one that is whole, of an image that is not listed yet
    FOLDER/incoming/HEX.part    the first bytes of one; who writes it holds a flock on it
    FOLDER/incoming/lock        flock: shared by who makes an image, alone for who sweeps

What a killed maker left in ``incoming`` is what the next one of the same image goes on with, for a day.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from perdure.errors import NotFound
from perdure.execution.images.diskerror import image_space_checked
from perdure.execution.images.documents import digest_of, hex_of
from perdure.linux import durable

INCOMING_KEPT_S = 24 * 3600.0


class BlobWriter:
    """A blob whose digest is known when all of it was written."""

    def __init__(self, blobs: Blobs, file: BinaryIO, path: Path) -> None:
        self._blobs, self._file, self._path = blobs, file, path
        self._hash = hashlib.sha256()
        self.size_bytes = 0

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"

    def write(self, data: bytes) -> None:
        self._hash.update(data)
        self.size_bytes += len(data)
        self._file.write(data)

    def commit(self) -> str:
        """Its digest; it has its place now."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._blobs.arrived(self._path, self.digest)
        return self.digest


class Blobs:
    """Safe for several threads and processes. Errors of the disk are OSErrors."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._kept = folder / "blobs"
        self._incoming = folder / "incoming"

    def find(self, digest: str) -> Path | None:
        """The file of a blob that is here and whole."""
        name = hex_of(digest, "a blob")
        for folder in (self._kept, self._incoming, self._kept):  # twice: it may be moved there between the two looks
            if (folder / name).exists():
                return folder / name
        return None

    def path(self, digest: str) -> Path:
        """Raises NotFound."""
        if (found := self.find(digest)) is None:
            raise NotFound(f"blob {digest} is not here", hint="Pull or load its image again.")
        return found

    def read(self, digest: str) -> bytes:
        """A small one, whole. Raises NotFound."""
        try:
            return self.path(digest).read_bytes()
        except FileNotFoundError:
            return self.path(digest).read_bytes()  # it was moved from one folder to the other in this moment

    @contextmanager
    def making(self) -> Iterator[None]:
        """No blob goes meanwhile: whoever finds one can count on it."""
        with image_space_checked(self._incoming):
            self._incoming.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._kept.mkdir(mode=0o700, exist_ok=True)
            lock = (self._incoming / "lock").open("w")
        with lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            yield

    def add(self, data: bytes) -> str:
        """A small blob; its digest."""
        digest = digest_of(data)
        if self.find(digest) is None:
            with self.writer() as out:
                out.write(data)
                out.commit()
        return digest

    @contextmanager
    def writer(self) -> Iterator[BlobWriter]:
        """Of a new blob; without a ``commit`` nothing is left of it."""
        path = self._incoming / f"{secrets.token_hex(8)}.part"
        try:
            with path.open("xb") as file:
                yield BlobWriter(self, file, path)
        finally:
            path.unlink(missing_ok=True)

    @contextmanager
    def part(self, digest: str) -> Iterator[tuple[BinaryIO, Path] | None]:
        """The file of a blob that is coming, with the bytes that came before; alone with it. None: it is whole now.

        ``arrived`` gives it its place. What is left without that stays for the next one.
        """
        path = self._incoming / f"{hex_of(digest, 'a blob')}.part"
        while True:
            with path.open("a+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if self.find(digest) is not None:
                    path.unlink(missing_ok=True)
                    yield None
                    return
                try:
                    is_ours = os.fstat(file.fileno()).st_ino == path.stat().st_ino
                except FileNotFoundError:
                    is_ours = False
                if is_ours:
                    yield file, path
                    return

    def arrived(self, part: Path, digest: str) -> None:
        """A file of ``incoming``, synced, whose bytes have this digest."""
        part.rename(self._incoming / hex_of(digest, "a blob"))
        durable.sync(self._incoming)

    def settle(self, digests: Iterable[str]) -> None:
        """They belong to an image that is about to be listed."""
        for digest in digests:
            name = hex_of(digest, "a blob")
            if not (self._kept / name).exists():
                (self._incoming / name).rename(self._kept / name)
            else:
                (self._incoming / name).unlink(missing_ok=True)
        durable.sync(self._kept)

    def forget(self, digests: Iterable[str]) -> None:
        """What came for an image that will not be, whole or not: the disk is full."""
        for digest in digests:
            for suffix in ("", ".part"):
                path = self._incoming / f"{hex_of(digest, 'a blob')}{suffix}"
                if not _is_held(path):
                    path.unlink(missing_ok=True)

    def drop_damaged(self, digests: Iterable[str]) -> bool:
        """Remove those whose bytes do not have their digest any more; whether there were any. For who holds blobs."""
        dropped = False
        for digest in digests:
            path = self.find(digest)
            if path is None:
                continue
            with path.open("rb") as file:
                is_whole = hashlib.file_digest(file, "sha256").hexdigest() == path.name
            if not is_whole:
                path.unlink()
                dropped = True
        return dropped

    def sweep(self, needed: Iterable[str], *, every: bool = False) -> None:
        """Remove what no listed image needs, unless an image is being made: then whoever sweeps next does it.

        every: also what a killed maker left a moment ago.
        """
        if not (self._incoming / "lock").exists():
            return  # it is made last
        with (self._incoming / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            kept = {hex_of(digest, "a blob") for digest in needed}
            for path in self._kept.iterdir():
                if path.name not in kept:
                    path.unlink()
            for path in self._incoming.iterdir():
                is_old = every or time.time() - path.stat().st_mtime > INCOMING_KEPT_S
                if path.name != "lock" and (is_old or len(path.stem) != 64):  # a name that nobody goes on with
                    path.unlink()

    def incoming(self) -> list[Path]:
        """What came for images that are not listed."""
        found = self._incoming.iterdir() if self._incoming.exists() else iter(())
        return [path for path in found if path.name != "lock"]


def _is_held(path: Path) -> bool:
    """Whether somebody else writes it."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False
