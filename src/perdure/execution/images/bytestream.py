"""Bytes of archives: a section of a file that can be opened again and again, decompressed on the way.

A layer is read twice (first its headers, then the files that survived), so everything here reads forward only and
starts anew with every ``open``. Nothing is held in memory beyond one chunk.
"""

from __future__ import annotations

import bz2
import hashlib
import lzma
import os
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

import zstandard

from perdure.errors import ImageInvalid

CHUNK = 1 << 20
COMPRESSED_CHUNK = 4096  # small on purpose: 4 KiB of hostile zstd still cannot become more than about 128 MiB at once
READ_MAX = 16 << 20  # no single read may ask for more: what asks is a header that lies about its size

_MAGIC: dict[bytes, Callable[[], Any]] = {
    b"\x1f\x8b": lambda: zlib.decompressobj(wbits=31),
    b"\x28\xb5\x2f\xfd": lambda: zstandard.ZstdDecompressor().decompressobj(),
    b"\xfd7zXZ\x00": lzma.LZMADecompressor,
    b"BZh": bz2.BZ2Decompressor,
}
_SKIPPABLE = tuple(bytes([0x50 + n, 0x2A, 0x4D, 0x18]) for n in range(16))  # zstd frames that carry no data


def _decompressor(start: bytes) -> Any | None:
    """A decompressor for the stream that starts so; None if it is of no kind that is known here."""
    for magic, make in _MAGIC.items():
        if start.startswith(magic):
            return make()
    return _MAGIC[b"\x28\xb5\x2f\xfd"]() if start[:4] in _SKIPPABLE else None


class Section:
    """``size_bytes`` bytes at ``offset`` of an open file. The file must stay open as long as the section is used."""

    def __init__(self, descriptor: int, offset: int, size_bytes: int, name: str) -> None:
        self._descriptor = descriptor
        self._offset = offset
        self.size_bytes = size_bytes
        self.name = name

    @staticmethod
    def whole(file: BinaryIO, name: str) -> Section:
        return Section(file.fileno(), 0, os.fstat(file.fileno()).st_size, name)

    def within(self, offset: int, size_bytes: int, name: str) -> Section:
        return Section(self._descriptor, self._offset + offset, size_bytes, name)

    def read_at(self, offset: int, size_bytes: int) -> bytes:
        """Up to ``size_bytes`` bytes; fewer only at the end of the section or of the file."""
        wanted = max(0, min(size_bytes, self.size_bytes - offset))
        return os.pread(self._descriptor, wanted, self._offset + offset)

    @property
    def is_compressed(self) -> bool:
        return _decompressor(self.read_at(0, 8)) is not None

    def open(self, *, verify: bool = False) -> ForwardReader:
        """Read it from its start, decompressed. With ``verify`` the reader also computes both digests."""
        return ForwardReader(self, verify=verify)


class ForwardReader:
    """The file-like object that ``tarfile`` reads from: ``read``, ``tell``, and ``seek`` that only goes forward.

    Raises ImageInvalid where the compressed stream is damaged or ends early, or where a read is absurdly large.
    """

    def __init__(self, section: Section, *, verify: bool = False) -> None:
        self._section = section
        self._taken = 0  # bytes of the section already read
        self._decompressor = _decompressor(section.read_at(0, 8))
        self._plain = self._decompressor is None
        self._buffer = bytearray()
        self._position = 0
        self._raw_hash = hashlib.sha256() if verify else None
        self._hash = hashlib.sha256() if verify and not self._plain else self._raw_hash
        self.last = b""  # what the newest read returned: tells an end mark from damage

    def seekable(self) -> bool:
        return True  # enough for tarfile, which goes forward when its members are read in order

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> int:
        """Go on to ``position``, or to the end if that comes first."""
        if position < self._position:
            raise ImageInvalid(f"{self._section.name}: a member's size points backwards", hint=_DAMAGED)
        while self._position < position:
            if not self._read(min(CHUNK, position - self._position)):
                break
        return self._position

    def read(self, size_bytes: int) -> bytes:
        if size_bytes > READ_MAX:
            raise ImageInvalid(f"{self._section.name}: a header claims {size_bytes} bytes", hint=_DAMAGED)
        self.last = self._read(size_bytes)
        return self.last

    def drain(self) -> None:
        """Read to the end, so that the digests are those of the whole."""
        while self._read(CHUNK):
            pass

    @property
    def raw_digest(self) -> str:
        """``sha256:HEX`` of the section as it is stored. Only after ``drain``."""
        assert self._raw_hash is not None
        return f"sha256:{self._raw_hash.hexdigest()}"

    @property
    def digest(self) -> str:
        """``sha256:HEX`` of the decompressed bytes. Only after ``drain``."""
        assert self._hash is not None
        return f"sha256:{self._hash.hexdigest()}"

    def _raw(self, size_bytes: int) -> bytes:
        data = self._section.read_at(self._taken, size_bytes)
        self._taken += len(data)
        if self._raw_hash is not None:
            self._raw_hash.update(data)
        return data

    def _read(self, size_bytes: int) -> bytes:
        parts = []
        missing = size_bytes
        while missing:
            if self._plain:
                part = self._raw(min(missing, CHUNK))
            else:
                if not self._buffer:
                    self._decompress()
                part = bytes(self._buffer[:missing])
                del self._buffer[:missing]
                if self._hash is not None:
                    self._hash.update(part)
            if not part:
                break
            parts.append(part)
            missing -= len(part)
        data = b"".join(parts)
        self._position += len(data)
        return data

    def _decompress(self) -> None:
        """Fill the buffer; leave it empty at the end of the stream."""
        while not self._buffer:
            data = self._raw(COMPRESSED_CHUNK)
            if not data:
                if self._decompressor is not None:
                    raise ImageInvalid(f"{self._section.name}: the compressed data ends early", hint=_DAMAGED)
                return
            while data:
                if self._decompressor is None:  # a frame ended: another one, or padding, may follow
                    data = data.lstrip(b"\0")
                    if not data:
                        break
                    data += self._raw(8) if len(data) < 8 else b""
                    self._decompressor = _decompressor(data)
                    if self._decompressor is None:
                        raise ImageInvalid(f"{self._section.name}: garbage after the compressed data", hint=_DAMAGED)
                try:
                    self._buffer += self._decompressor.decompress(data)
                except (zlib.error, lzma.LZMAError, OSError, EOFError, zstandard.ZstdError) as error:
                    raise ImageInvalid(
                        f"{self._section.name}: the compressed data is damaged ({error})", hint=_DAMAGED
                    ) from None
                data = b""
                if self._decompressor.eof:
                    data = self._decompressor.unused_data
                    self._decompressor = None


_DAMAGED = "The archive is damaged or was cut short: get it again and compare its checksum."
