"""Which frames of a layer are in its cache file (docs/formats/cache.md). No I/O."""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from perdure.errors import SnapshotInvalid

MAGIC = b"PDFP"
VERSION = 1
# magic, version, -, frames, size of the layer, where its index begins, crc32 of the index, crc32 of this file
HEADER = struct.Struct("<4sHHIQQII")


class Presence(NamedTuple):
    """``bits``: frame n is in the file when bit ``n % 8`` of byte ``n // 8`` is set."""

    frames: int
    size: int  # bytes of the whole layer
    begin: int  # where its index (block map and seek table) begins
    checksum: int  # CRC-32 of the index: of the bytes from there to the end
    bits: bytearray

    def has(self, number: int) -> bool:
        return bool(self.bits[number >> 3] >> (number & 7) & 1)

    def put(self, number: int) -> None:
        self.bits[number >> 3] |= 1 << (number & 7)

    def drop(self, number: int) -> None:
        self.bits[number >> 3] &= ~(1 << (number & 7))

    @property
    def complete(self) -> bool:
        return sum(byte.bit_count() for byte in self.bits) == self.frames


def empty(frames: int, size: int, begin: int, checksum: int) -> Presence:
    """No frame is there."""
    return Presence(frames, size, begin, checksum, bytearray(-(-frames // 8)))


def encode(presence: Presence) -> bytes:
    """The bytes of the file."""
    fields = (MAGIC, VERSION, 0, presence.frames, presence.size, presence.begin, presence.checksum)
    own = zlib.crc32(presence.bits, zlib.crc32(HEADER.pack(*fields, 0)))
    return HEADER.pack(*fields, own) + presence.bits


def decode(data: bytes) -> Presence:
    """Raises SnapshotInvalid for anything but what ``encode`` wrote."""
    if len(data) < HEADER.size:
        raise SnapshotInvalid("the presence file is truncated")
    *fields, own = HEADER.unpack_from(data)
    magic, version, unused, frames, size, begin, checksum = fields
    if magic != MAGIC or version != VERSION or unused:
        raise SnapshotInvalid("this is not a presence file of this version")
    bits = bytearray(data[HEADER.size :])
    if zlib.crc32(bits, zlib.crc32(HEADER.pack(*fields, 0))) != own:
        raise SnapshotInvalid("the presence file's checksum is wrong")
    if len(bits) != -(-frames // 8) or begin > size or (frames % 8 and bits[-1] >> frames % 8):
        raise SnapshotInvalid("the presence file's sizes contradict each other")
    return Presence(frames, size, begin, checksum, bits)
