"""The zstd seekable format: independent frames, then a table of them in a skippable frame (docs/formats/layer.md).

The table follows "Zstandard Seekable Format", version 0.1.0 (zstd's contrib/seekable_format). Its checksum of a frame
is the low half of the XXH64 of the frame's content: the same four bytes with which zstd itself ends a frame that
carries a content checksum. So no second hash is computed here, and libzstd verifies it at each decompression.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

import zstandard

from perdure.errors import SnapshotInvalid

SKIPPABLE = struct.Struct("<II")  # magic, length of what follows
TABLE_MAGIC = 0x184D2A5E
FOOTER = struct.Struct("<IBI")  # number of frames, descriptor, magic
FOOTER_MAGIC = 0x8F92EAB1
CHECKSUMS = 0x80  # descriptor: entries carry checksums
ENTRY = struct.Struct("<III")  # compressed size, size, checksum
EMPTY_CHECKSUM = 0x51D8E999  # of no bytes at all: what a skippable frame's entry carries
FRAMES_MAX = 0x8000000  # the specification's limit
FRAME_BYTES_MAX = 8 << 20  # no frame of ours is larger; bounds the memory that a hostile file can ask for


class Frame(NamedTuple):
    """One frame: where its compressed bytes are in the file, and what they become."""

    offset: int
    compressed: int
    size: int
    checksum: int


def skippable(magic: int, payload: bytes) -> bytes:
    return SKIPPABLE.pack(magic, len(payload)) + payload


def content_checksum(frame: bytes) -> int:
    """The checksum in the last four bytes of a compressed frame (it must have been written with one)."""
    return int.from_bytes(frame[-4:], "little")


def encode_table(frames: Iterable[Frame]) -> bytes:
    """The seek table for frames that follow each other from offset 0. A skippable frame has size 0."""
    body = b"".join(ENTRY.pack(frame.compressed, frame.size, frame.checksum) for frame in frames)
    return skippable(TABLE_MAGIC, body + FOOTER.pack(len(body) // ENTRY.size, CHECKSUMS, FOOTER_MAGIC))


def table_length(end: bytes) -> int:
    """How long the table is, its own header included, from the last ``FOOTER.size`` bytes of the file."""
    if len(end) != FOOTER.size:
        raise SnapshotInvalid("shorter than a seek table's footer: the file is truncated or not a layer")
    count, descriptor, magic = FOOTER.unpack(end)
    if magic != FOOTER_MAGIC:
        raise SnapshotInvalid(f"ends with magic {magic:#010x}, not a seek table's: truncated or not a layer")
    if descriptor != CHECKSUMS:
        raise SnapshotInvalid(f"seek table descriptor {descriptor:#04x}: only tables with checksums are read")
    if count > FRAMES_MAX:
        raise SnapshotInvalid(f"seek table claims {count} frames, more than the format allows")
    return SKIPPABLE.size + int(count) * ENTRY.size + FOOTER.size


def decode_table(table: bytes, file_size: int) -> list[Frame]:
    """The frames of the file; raises ``SnapshotInvalid`` unless they and the table fill it exactly."""
    if len(table) < SKIPPABLE.size + FOOTER.size or len(table) != table_length(table[-FOOTER.size :]):
        raise SnapshotInvalid("the seek table is truncated")
    magic, length = SKIPPABLE.unpack_from(table)
    if magic != TABLE_MAGIC or length != len(table) - SKIPPABLE.size:
        raise SnapshotInvalid("the seek table's own header does not fit its footer")
    frames = []
    offset = 0
    for compressed, size, checksum in ENTRY.iter_unpack(table[SKIPPABLE.size : -FOOTER.size]):
        frames.append(Frame(offset, compressed, size, checksum))
        offset += compressed
    if offset + len(table) != file_size:
        raise SnapshotInvalid(f"frames and table fill {offset + len(table)} bytes of a file of {file_size}")
    return frames


def decompress(decompressor: zstandard.ZstdDecompressor, data: bytes, size: int, checksum: int) -> bytes:
    """The content of one frame, verified against its entry in the seek table.

    Raises ``SnapshotInvalid`` with the reason; the caller names layer and frame.
    """
    if content_checksum(data) != checksum:
        raise SnapshotInvalid("its checksum is not the seek table's")
    try:
        parameters = zstandard.get_frame_parameters(data)
        if parameters.content_size != size or not parameters.has_checksum:
            raise SnapshotInvalid("its header is not that of the frame in the seek table")
        content = decompressor.decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise SnapshotInvalid(f"it does not decompress: {error}") from None
    if len(content) != size:
        raise SnapshotInvalid(f"it holds {len(content)} bytes, not {size}")
    return content
