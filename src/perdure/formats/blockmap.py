"""Which 4 KiB block of a byte space comes from where: runs, their arithmetic, and their bytes (docs/formats/layer.md).

Two roles share one encoding. In a *layer*'s map a run is data of this layer or explicit zeros, and a block in no run
is the parent's. In a *flat* map runs name the template or one of several layers, and a block in no run is zeros.

Version 2 is only for layers whose data is not in the order of its blocks (a compacted one is in the order of first
touch). Everything else is written as version 1, which older programs read.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import zstandard

from perdure.errors import SnapshotInvalid

BLOCK = 4096
ZERO = 0  # sources of a run
BASE = 1  # the template's raw file, at the same place
LAYER = 2  # layer i is LAYER + i; in a layer's own map: itself

MEMORY, DISK = 1, 2  # kinds
ROLE_LAYER, ROLE_FLAT = 1, 2
IN_ORDER, MOVED = 1, 2  # versions
BLOCK_SHIFT = 12
MAGIC = b"PDBM"
# magic, version, kind, role, block shift, -, layers, blocks, runs, packed blocks, base, length of columns, crc32
HEADER = struct.Struct("<4sHBBBBHIII32sII")
NO_BASE = bytes(32)  # the base is zeros
BLOCKS_MAX = 1 << 31
COLUMNS_BYTES_MAX = 64 << 20  # decompressed; a guest of 64 GiB of which every second block changed needs 33 MB


class Run(NamedTuple):
    """``length`` blocks from block ``first`` on are found at block ``at`` of ``source`` and after it."""

    first: int
    length: int
    source: int
    at: int = 0

    def steps(self, blocks: int) -> Iterator[Run]:
        """Its parts, each of at most so many blocks."""
        for done in range(0, self.length, blocks):
            at = self.at + done if self.source != ZERO else 0
            yield Run(self.first + done, min(blocks, self.length - done), self.source, at)


class BlockMap(NamedTuple):
    """A decoded map. ``packed``: data blocks of the layer (0 in a flat map); ``layers``: how many the runs may name."""

    kind: int
    role: int
    blocks: int
    layers: int
    packed: int
    base: bytes
    runs: list[Run]


def joined(runs: Iterable[Run]) -> list[Run]:
    """The same runs, neighbours that continue each other made one."""
    out: list[Run] = []
    first, length, source, at = 0, 0, -1, 0  # of the last one
    for run in runs:
        if run.source == source and first + length == run.first and (source == ZERO or at + length == run.at):
            length += run.length
            out[-1] = Run(first, length, source, at)
            continue
        first, length, source, at = run
        out.append(run)
    return out


def cut(run: Run, first: int, end: int) -> Run:
    """The part of a run within blocks first..end (which must overlap it)."""
    low = max(run.first, first)
    at = run.at + (low - run.first) if run.source != ZERO else 0
    return Run(low, min(run.first + run.length, end) - low, run.source, at)


def laid_over(lower: Sequence[Run], upper: Sequence[Run]) -> list[Run]:
    """What is seen when ``upper`` lies over ``lower``; explicit zeros of ``upper`` become absence (a flat map)."""
    out: list[Run] = []
    position = 0  # in lower
    seen = 0  # blocks before this one are done

    def take_lower(end: int) -> None:
        nonlocal position
        while position < len(lower):
            run = lower[position]
            run_end = run.first + run.length
            if run.first >= end:
                return
            if run.first >= seen and run_end <= end:
                out.append(run)  # most are whole
            elif run_end > seen and end > seen:
                out.append(cut(run, seen, end))
            if run_end > end:
                return
            position += 1

    for run in upper:
        take_lower(run.first)
        if run.source != ZERO:
            out.append(run)
        seen = run.first + run.length
    take_lower(BLOCKS_MAX)
    return joined(out)


def encode(runs: Sequence[Run], *, kind: int, role: int, blocks: int, layers: int, base: bytes = NO_BASE) -> bytes:
    """The bytes of a map. Runs are in order of their blocks and do not overlap.

    In a layer's map they may name its data in any order, and several may name the same, but all of it is named.
    """
    columns = (bytearray(), bytearray(), bytearray(), bytearray())  # gap, count, source, at
    expected: dict[int, int] = {}
    end = packed = 0
    version = IN_ORDER
    for first, length, source, at in runs:
        _put(columns[0], first - end)
        _put(columns[1], length)
        _put(columns[2], source)
        if source >= LAYER:
            move = at - expected.get(source, 0)
            if move and role == ROLE_LAYER:
                version = MOVED
            _put(columns[3], _zigzag(move))
            expected[source] = at + length
            packed = max(packed, at + length)
        end = first + length
    plain = b"".join(columns)
    body = zstandard.ZstdCompressor(level=3, write_checksum=False).compress(plain)
    fields = (MAGIC, version, kind, role, BLOCK_SHIFT, 0, layers, blocks, len(runs))
    packed = packed if role == ROLE_LAYER else 0
    unsummed = HEADER.pack(*fields, packed, base, len(plain), 0)
    return HEADER.pack(*fields, packed, base, len(plain), zlib.crc32(body, zlib.crc32(unsummed))) + body


def decode(data: bytes) -> BlockMap:
    """The map in ``data``; raises ``SnapshotInvalid`` with the reason if any of it is not as ``encode`` writes it."""
    if len(data) < HEADER.size:
        raise SnapshotInvalid("the block map is truncated")
    fields = HEADER.unpack_from(data)
    magic, version, kind, role, shift, unused, layers, blocks, count, packed, base, length, checksum = fields
    if magic != MAGIC:
        raise SnapshotInvalid("this is not a block map of ours")
    if version not in (IN_ORDER, MOVED):
        raise SnapshotInvalid(
            f"the block map has format version {version}; this program reads versions {IN_ORDER} and {MOVED}",
            hint="Update Perdure: the snapshot was made by a newer version.",
        )
    body = data[HEADER.size :]
    if zlib.crc32(body, zlib.crc32(HEADER.pack(*fields[:-1], 0))) != checksum:
        raise SnapshotInvalid("the block map's checksum is wrong")
    if kind not in (MEMORY, DISK) or role not in (ROLE_LAYER, ROLE_FLAT) or shift != BLOCK_SHIFT or unused:
        raise SnapshotInvalid("the block map's header has values that are not defined")
    if not 0 < blocks <= BLOCKS_MAX or count > blocks or length > count * 20 or (role == ROLE_LAYER and layers != 1):
        raise SnapshotInvalid("the block map's sizes contradict each other")
    if length > COLUMNS_BYTES_MAX:
        raise SnapshotInvalid(f"the block map's columns have {length} bytes, more than any map of ours")
    runs = _decode_columns(_plain(body, length), count, LAYER + layers)
    if runs and runs[-1].first + runs[-1].length > blocks:
        raise SnapshotInvalid("the block map reaches beyond the end of its space")
    if role == ROLE_LAYER:
        _check_data(runs, packed, in_order=version == IN_ORDER)
    elif packed or version != IN_ORDER or any(run.source == ZERO for run in runs):
        raise SnapshotInvalid("a flat map with data or explicit zeros of its own")
    return BlockMap(kind, role, blocks, layers, packed, base, runs)


def _check_data(runs: Sequence[Run], packed: int, *, in_order: bool) -> None:
    """All data of the layer, and nothing else, is named; in version 1 once, in the order of the blocks."""
    named = [(run.at, run.at + run.length) for run in runs if run.source == LAYER]
    if any(run.source == BASE for run in runs):
        raise SnapshotInvalid("a layer's block map with blocks of the template")
    data_at = 0
    for at, end in named if in_order else sorted(named):
        if at > data_at or (in_order and at != data_at):
            raise SnapshotInvalid("the block map's data is not in the order of its blocks, or not all of it is named")
        data_at = max(data_at, end)
    if data_at != packed:
        raise SnapshotInvalid("the block map does not name as many blocks as the layer holds")


def _plain(body: bytes, length: int) -> bytes:
    try:
        if zstandard.frame_content_size(body) != length:
            raise SnapshotInvalid("the block map's columns have another length than its header says")
        return zstandard.ZstdDecompressor().decompress(body, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise SnapshotInvalid(f"the block map does not decompress: {error}") from None


def _decode_columns(plain: bytes, count: int, sources: int) -> list[Run]:
    numbers = _varints(plain)
    if len(numbers) < 3 * count:
        raise SnapshotInvalid("the block map has fewer values than runs")
    moves = iter(numbers[3 * count :])
    expected: dict[int, int] = {}
    runs: list[Run] = []
    end = 0
    for gap, size, source in zip(numbers[:count], numbers[count : 2 * count], numbers[2 * count :], strict=False):
        first = end + gap
        if not size or source >= sources:
            raise SnapshotInvalid("the block map has an empty run or one of an unknown source")
        at = first if source == BASE else 0
        if source >= LAYER:
            move = next(moves, None)
            if move is None:
                raise SnapshotInvalid("the block map has fewer places than runs of data")
            at = expected.get(source, 0) + ((move >> 1) ^ -(move & 1))
            if at < 0:
                raise SnapshotInvalid("the block map names a place before a layer's first block")
            expected[source] = at + size
        end = first + size
        runs.append(Run(first, size, source, at))
        if len(runs) == count:
            break
    if next(moves, None) is not None:
        raise SnapshotInvalid("the block map has values after its last run")
    return runs


def _zigzag(value: int) -> int:
    return value << 1 if value >= 0 else (-value << 1) - 1


def _put(out: bytearray, value: int) -> None:
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _varints(data: bytes) -> list[int]:
    if data.isascii():  # no byte goes on
        return list(data)
    numbers = []
    value = shift = 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        if byte & 0x80:
            shift += 7
            if shift > 35:
                raise SnapshotInvalid("the block map has a number that is too long")
        else:
            numbers.append(value)
            value = shift = 0
    if shift:
        raise SnapshotInvalid("the block map ends within a number")
    return numbers
