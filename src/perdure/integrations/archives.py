"""A folder of a sandbox as an archive that fits anywhere: its members are named from the folder on."""

from __future__ import annotations

import io
import posixpath
import tarfile
import tempfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any, BinaryIO

CHUNK_BYTES = 1 << 20
SPOOL_BYTES = 16 << 20  # then it is on disk


class Pieces(io.RawIOBase):
    """An iterable of bytes as a file."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            if (piece := next(self._pieces, None)) is None:
                return 0
            self._rest = memoryview(piece)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def stream(pieces: Iterable[bytes]) -> tarfile.TarFile:
    """A tar as it comes: its members can be read one after the other."""
    return tarfile.open(fileobj=io.BufferedReader(Pieces(pieces)), mode="r|")


def portable(pieces: Iterable[bytes], folder: str, skipped: Collection[PurePosixPath] = ()) -> BinaryIO:
    """The tar of ``folder`` (an absolute path), whose members begin with its name, without that name; links to places
    within it are relative. skipped: what is left out, with what is below. A file, at its beginning."""
    name = posixpath.basename(folder)
    made: Any = tempfile.SpooledTemporaryFile(SPOOL_BYTES)  # noqa: SIM115 - the caller closes it
    with stream(pieces) as source, tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as target:
        for member in source:
            place = _within(member.name, name)
            if place is None or any(left == place or left in place.parents for left in skipped):
                continue
            member.name, member.pax_headers = str(place), {}
            if member.islnk():
                if (linked := _within(member.linkname, name)) is None:
                    continue
                member.linkname = str(linked)
            elif member.issym() and member.linkname.startswith(f"{folder}/"):
                member.linkname = posixpath.relpath(member.linkname, posixpath.join(folder, place.parent))
            target.addfile(member, source.extractfile(member) if member.isreg() else None)
    made.seek(0)
    file: BinaryIO = made
    return file


def _within(path: str, name: str) -> PurePosixPath | None:
    """The path below the folder of that name; None: it is the folder itself, or elsewhere."""
    found = PurePosixPath(path)
    return PurePosixPath(*found.parts[1:]) if found.parts[:1] == (name,) and len(found.parts) > 1 else None


def chunks(file: Any) -> Iterator[bytes]:
    """What is in a file, from here on."""
    return iter(lambda: file.read(CHUNK_BYTES), b"")
