"""What a sandbox's disk held at its newest snapshot, by hashes (docs/formats/disk-index.md). No I/O."""

from __future__ import annotations

import struct
import sys
import zlib
from array import array
from dataclasses import dataclass
from typing import NamedTuple

from perdure.errors import SnapshotInvalid
from perdure.formats.manifest import check_digest

MAGIC = b"PDDX"
VERSION = 1
CHUNK = 1 << 16  # bytes of the disk that one hash is of
HASH_BYTES = 16  # of a SHA-256
# magic, version, log2 of CHUNK, chunks, boot id, size, inode, time of modification, snapshot, crc32 of this file
HEADER = struct.Struct("<4sHHI16sQQQ32sI")


class Stamp(NamedTuple):
    """By what a file is known to be the same one, and not written to since."""

    boot: bytes  # the machine's boot (16 bytes): what was never synced may be gone after it
    size: int
    inode: int
    mtime_ns: int


@dataclass(frozen=True)
class DiskIndex:
    """``chunks``: the hash of each chunk (by number) that holds data; the others are holes, and read as zeros."""

    snapshot: str  # the digest of the snapshot
    stamp: Stamp  # of the file that held this disk then
    chunks: dict[int, bytes]


def encode(index: DiskIndex) -> bytes:
    """The bytes of the file."""
    boot, size, inode, mtime = index.stamp
    fields = (MAGIC, VERSION, CHUNK.bit_length() - 1, len(index.chunks), boot, size, inode, mtime)
    snapshot = bytes.fromhex(check_digest(index.snapshot))
    numbers = array("I", index.chunks)
    if sys.byteorder == "big":
        numbers.byteswap()
    data = numbers.tobytes() + b"".join(index.chunks.values())
    return HEADER.pack(*fields, snapshot, zlib.crc32(data, zlib.crc32(HEADER.pack(*fields, snapshot, 0)))) + data


def decode(data: bytes) -> DiskIndex:
    """Raises SnapshotInvalid for anything but what ``encode`` wrote."""
    if len(data) < HEADER.size:
        raise SnapshotInvalid("the disk index is truncated")
    *fields, checksum = HEADER.unpack_from(data)
    magic, version, shift, count, boot, size, inode, mtime, snapshot = fields
    if magic != MAGIC or version != VERSION or 1 << shift != CHUNK:
        raise SnapshotInvalid("this is not a disk index of this version")
    if len(data) != HEADER.size + count * (4 + HASH_BYTES):
        raise SnapshotInvalid("the disk index is truncated, or longer than it says")
    if zlib.crc32(memoryview(data)[HEADER.size :], zlib.crc32(HEADER.pack(*fields, 0))) != checksum:
        raise SnapshotInvalid("the disk index is damaged")
    numbers = array("I", data[HEADER.size : HEADER.size + 4 * count])
    if sys.byteorder == "big":
        numbers.byteswap()
    at = HEADER.size + 4 * count
    hashes = [data[place : place + HASH_BYTES] for place in range(at, len(data), HASH_BYTES)]
    return DiskIndex(
        "sha256:" + snapshot.hex(), Stamp(boot, size, inode, mtime), dict(zip(numbers, hashes, strict=True))
    )
