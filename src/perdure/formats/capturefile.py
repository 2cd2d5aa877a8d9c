"""The capture file: what a machine's memory is beyond what it was, in one dense file (docs/formats/capture.md).

Written below the dotted line by the collector (``collector/output.c``), read above it when a capture is packed.
"""

from __future__ import annotations

import struct
import sys
import zlib
from array import array
from collections.abc import Sequence
from typing import NamedTuple

from perdure.errors import SnapshotInvalid
from perdure.formats.blockmap import BASE, BLOCK, BLOCK_SHIFT, LAYER, NO_BASE, ZERO, Run

MAGIC = b"PDCF"
VERSION = 1
# magic, version, block shift, blocks, runs, data blocks, CRC-32 of the data, CRC-32 of the head, -, template's digest
HEADER = struct.Struct("<4sHHIIIIII32s")
BLOCKS_MAX = 1 << 28


class CaptureFile(NamedTuple):
    """A decoded file. In ``runs`` the source is ZERO, BASE (the template's, at the same place) or LAYER: the data here.

    A block in no run is as it was in the snapshot before.
    """

    blocks: int  # of the space
    base: bytes  # digest of the template that runs of BASE mean
    runs: list[Run]  # in order; of LAYER: ``at`` is the block within ``data``, which follows their order
    data: memoryview

    def content(self, run: Run) -> memoryview:
        """The bytes of a run of LAYER."""
        return self.data[run.at * BLOCK : (run.at + run.length) * BLOCK]


def encode(blocks: int, runs: Sequence[Run], data: bytes, base: bytes = NO_BASE) -> bytes:
    """The bytes of a file. The collector writes the same; this is for tests of what reads them."""
    table = array("I", [value for run in runs for value in (run.first, run.length, run.source)])
    if sys.byteorder != "little":
        table.byteswap()
    rest = table.tobytes()
    rest += bytes(-(HEADER.size + len(rest)) % BLOCK)
    fields = (MAGIC, VERSION, BLOCK_SHIFT, blocks, len(runs), len(data) // BLOCK, zlib.crc32(data))
    checksum = zlib.crc32(rest, zlib.crc32(HEADER.pack(*fields, 0, 0, base)))
    return HEADER.pack(*fields, checksum, 0, base) + rest + data


def decode(held: bytes | memoryview) -> CaptureFile:
    """The file in ``held``, all of it verified; ``data`` is a part of it, not a copy. Raises SnapshotInvalid."""
    view = memoryview(held)
    if len(view) < HEADER.size:
        raise SnapshotInvalid("the capture file is truncated")
    fields = HEADER.unpack_from(view)
    magic, version, shift, blocks, count, data_blocks, data_checksum, checksum, unused, base = fields
    if magic != MAGIC:
        raise SnapshotInvalid("this is not a capture file")
    if version != VERSION:
        raise SnapshotInvalid(f"the capture file has format version {version}, not {VERSION}")
    place = -(-(HEADER.size + 12 * count) // BLOCK) * BLOCK
    if len(view) != place + data_blocks * BLOCK:
        wanted = place + data_blocks * BLOCK
        raise SnapshotInvalid(f"the capture file has {len(view)} bytes where its header asks for {wanted}")
    if zlib.crc32(view[HEADER.size : place], zlib.crc32(HEADER.pack(*fields[:7], 0, unused, base))) != checksum:
        raise SnapshotInvalid("the checksum of the capture file's head is wrong")
    data = view[place:]
    if zlib.crc32(data) != data_checksum:
        raise SnapshotInvalid("the checksum of the capture file's data is wrong")
    if shift != BLOCK_SHIFT or unused or not 0 < blocks <= BLOCKS_MAX:
        raise SnapshotInvalid("the capture file's header has values that are not defined")
    table = array("I")
    table.frombytes(view[HEADER.size : HEADER.size + 12 * count])
    if sys.byteorder != "little":
        table.byteswap()
    runs: list[Run] = []
    end = packed = 0
    for first, length, source in zip(table[::3], table[1::3], table[2::3], strict=True):
        if first < end or not length or source > LAYER or (source == BASE and base == NO_BASE):
            raise SnapshotInvalid("the capture file has a run that overlaps another, is empty or has no source")
        end = first + length
        runs.append(Run(first, length, source, {ZERO: 0, BASE: first}.get(source, packed)))
        if source == LAYER:
            packed += length
    if end > blocks or packed != data_blocks:
        raise SnapshotInvalid("the capture file's runs do not name its data, or reach beyond the end of the memory")
    return CaptureFile(blocks, base, runs, data)
