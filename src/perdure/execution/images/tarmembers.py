"""Members of one tar stream, read strictly: where ``tarfile`` would stop without a word, this raises."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import IO, cast

from perdure.errors import ImageInvalid, PerdureError
from perdure.execution.images.bytestream import ForwardReader

_BLOCK = 512
_DAMAGED = "The archive is damaged or was cut short: get it again and compare its checksum."
_NOT_TAR = "Give a tar archive, plain or compressed with gzip, bzip2, xz or zstd."


class Member:
    """One header, with the way to its data while the iteration stands on it."""

    def __init__(self, archive: tarfile.TarFile, header: tarfile.TarInfo, name: str) -> None:
        self._archive = archive
        self._name = name
        self.header = header

    def start(self, size_bytes: int) -> bytes:
        """The first bytes of its data (of a regular file). The data cannot be read again after it."""
        return b"".join(self.data([(0, min(size_bytes, self.header.size))]))

    def data(self, extents: list[tuple[int, int]]) -> Iterator[bytes]:
        """The bytes of (offset, length) pairs in ascending order, in chunks.

        Raises ImageInvalid where they end early.
        """
        file = self._archive.extractfile(self.header)
        assert file is not None, self.header.name
        for offset, length in extents:
            if file.tell() != offset:
                file.seek(offset)
            while length:
                try:
                    part = file.read(min(length, 1 << 20))
                except tarfile.ReadError:
                    part = b""
                if not part:
                    raise ImageInvalid(f"{self._name}: {self.header.name} ends early", hint=_DAMAGED)
                length -= len(part)
                yield part


def members(reader: ForwardReader, name: str, *, vouched: bool = False) -> Iterator[Member]:
    """The members in order. ``name`` is what errors call the stream.

    A tar must end with a block of zeros (POSIX.1-2001, pax, "ustar Interchange Format"): without one it was cut
    between two members and nothing else would tell. A stream that a digest vouches for may lack it, and also what fills
    up the last member's block: ``umoci insert`` writes such layers.
    """
    last: tarfile.TarInfo | None = None
    try:
        # tarfile wants a whole file object by its type, and uses read, seek and tell when reading.
        with tarfile.TarFile(fileobj=cast("IO[bytes]", reader), mode="r", errors="surrogateescape") as archive:
            while (header := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # or it keeps every header of the archive
                last = header
                yield Member(archive, header, name)
            mark = reader.last
    except PerdureError:
        raise
    except (tarfile.TarError, ValueError, KeyError, IndexError, OverflowError, EOFError, RecursionError) as error:
        if vouched and last is not None and last.sparse is None and reader.tell() == last.offset_data + last.size:
            return
        hint = _NOT_TAR if reader.tell() <= _BLOCK else _DAMAGED
        raise ImageInvalid(f"{name} is not a readable tar archive: {error}", hint=hint) from None
    if mark.strip(b"\0"):
        raise ImageInvalid(f"{name}: damaged header before byte {reader.tell()}", hint=_DAMAGED)
    if len(mark) < _BLOCK and not vouched:
        raise ImageInvalid(f"{name}: no end mark after byte {reader.tell()}: the archive is cut short", hint=_DAMAGED)
