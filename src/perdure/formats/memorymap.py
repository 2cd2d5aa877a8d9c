"""The memory map file: what a pager needs to serve one machine's memory (docs/formats/memory-map.md).

Written above the dotted line, where computing is cheap, and laid out for the reader below it: columns of fixed width
that are used as they are. Runs never cross a frame, and each frame lists its runs, so that the pager puts a frame into
memory as soon as it is decompressed, whole, and never needs it again. The pager's own reader is pager/map.c.
"""

from __future__ import annotations

import json
import struct
import sys
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple

from perdure.errors import SnapshotInvalid

MAGIC = b"PDMM"
VERSION = 2
HEADER = struct.Struct("<4sHHIIIIIII")  # magic, version, -, length of JSON, blocks, runs, frames, by-frame, hot, crc32

ZERO = 0  # sources of a run; a run of frame g has FRAME + g
TEMPLATE = 1
FRAME = 2


class MemoryMap(NamedTuple):
    """The decoded file. All columns of runs have the same length, as have all columns of frames."""

    blocks: int  # of guest memory
    template: str  # path of its raw memory file
    layers: list[str]  # paths
    partial: list[bool]  # layers of which frames may be absent from the file
    first: array[int]  # runs, in order; together they cover every block
    source: array[int]
    at: array[int]  # block within the frame (0 for other sources)
    frame_layer: array[int]  # frames
    frame_offset: array[int]  # where it starts in the layer's file
    frame_compressed: array[int]
    frame_blocks: array[int]
    frame_checksum: array[int]
    frame_number: array[int]  # within its layer
    frame_present: array[int]  # 1: it is in the layer's file, 0: it must be fetched there first
    frame_runs: array[int]  # where its runs start in by_frame; one more at the end
    by_frame: array[int]  # numbers of runs, grouped by frame
    hot: array[int]  # blocks that were touched first after an earlier restore, in that order

    def count(self, run: int) -> int:
        """How many blocks a run has."""
        following = run + 1
        return (self.first[following] if following < len(self.first) else self.blocks) - self.first[run]


_RUN_COLUMNS = ("first", "source", "at")
_FRAME_COLUMNS = ("frame_layer", "frame_compressed", "frame_blocks", "frame_checksum", "frame_number", "frame_present")


def column(values: Sequence[int] = ()) -> array[int]:
    """A column of 32-bit numbers."""
    return array("I", values)


def wide_column(values: Sequence[int] = ()) -> array[int]:
    """A column of 64-bit numbers."""
    return array("Q", values)


def absent_hot(value: MemoryMap) -> list[tuple[int, int]]:
    """The frames of hot blocks that must be fetched first, in the order of those blocks: (layer, number in it)."""
    found: dict[tuple[int, int], None] = {}
    for block in value.hot:
        frame = value.source[bisect_right(value.first, block) - 1] - FRAME
        if frame >= 0 and not value.frame_present[frame]:
            found[value.frame_layer[frame], value.frame_number[frame]] = None
    return list(found)


def encode(value: MemoryMap) -> bytes:
    """The bytes of the file."""
    head = json.dumps({"template": value.template, "layers": value.layers, "partial": value.partial}).encode()
    head += b" " * (-(HEADER.size + len(head)) % 8)
    parts = [head, _out(value.frame_offset)]
    parts += [_out(getattr(value, name)) for name in (*_RUN_COLUMNS, *_FRAME_COLUMNS)]
    parts += [_out(value.frame_runs), _out(value.by_frame), _out(value.hot)]
    body = b"".join(parts)
    counts = (value.blocks, len(value.first), len(value.frame_layer), len(value.by_frame), len(value.hot))
    checksum = zlib.crc32(body, zlib.crc32(HEADER.pack(MAGIC, VERSION, 0, len(head), *counts, 0)))
    return HEADER.pack(MAGIC, VERSION, 0, len(head), *counts, checksum) + body


def decode(data: bytes) -> MemoryMap:
    """The map in ``data``; raises ``SnapshotInvalid`` with the reason."""
    if len(data) < HEADER.size:
        raise SnapshotInvalid("the memory map file is truncated")
    magic, version, unused, head_length, blocks, runs, frames, by_frame, hot, checksum = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise SnapshotInvalid("this is not a memory map file")
    if version not in (1, VERSION):
        raise SnapshotInvalid(f"the memory map file has format version {version}, not {VERSION}")
    frame_columns = _FRAME_COLUMNS[: -1 if version == 1 else None]
    columns_of_32_bits = 3 * runs + len(frame_columns) * frames + frames + 1 + by_frame + hot
    size = HEADER.size + head_length + 8 * frames + 4 * columns_of_32_bits
    if len(data) != size:
        raise SnapshotInvalid(f"the memory map file has {len(data)} bytes where its header asks for {size}")
    view = memoryview(data)
    unsummed = HEADER.pack(magic, version, unused, head_length, blocks, runs, frames, by_frame, hot, 0)
    if zlib.crc32(view[HEADER.size :], zlib.crc32(unsummed)) != checksum:
        raise SnapshotInvalid("the memory map file's checksum is wrong")
    place = HEADER.size + head_length
    head = _head(data[HEADER.size : place], version)

    def take(count: int, typecode: str = "I") -> array[int]:
        nonlocal place
        values = array(typecode)
        length = count * values.itemsize
        values.frombytes(view[place : place + length])
        if sys.byteorder != "little":
            values.byteswap()
        place += length
        return values

    columns: dict[str, Any] = {"frame_offset": take(frames, "Q")}
    columns |= {name: take(runs) for name in _RUN_COLUMNS}
    columns["frame_present"] = column([1]) * frames  # of version 1: none was absent
    columns |= {name: take(frames) for name in frame_columns}
    columns |= {"frame_runs": take(frames + 1), "by_frame": take(by_frame), "hot": take(hot)}
    value = MemoryMap(blocks=blocks, **head, **columns)
    _check(value)
    return value


def _head(data: bytes, version: int) -> dict[str, Any]:
    try:
        head = json.loads(data)
        template, paths = head["template"], head["layers"]
        partial = [False] * len(paths) if version == 1 else head["partial"]
        texts = all(isinstance(path, str) for path in (template, *paths))
        if texts and len(partial) == len(paths) and all(isinstance(flag, bool) for flag in partial):
            return {"template": template, "layers": list(paths), "partial": list(partial)}
    except (ValueError, KeyError, TypeError):
        pass  # said below
    raise SnapshotInvalid("the memory map file does not name its template and layers")


def _check(value: MemoryMap) -> None:
    """Only what would lead a reader out of bounds; a wrong checksum was refused before."""
    frames = len(value.frame_layer)
    if not value.first or value.first[0] != 0 or value.first[-1] >= value.blocks:
        raise SnapshotInvalid("the memory map file's runs do not cover the memory")
    if max(value.source) >= FRAME + frames or max(value.by_frame, default=0) >= len(value.first):
        raise SnapshotInvalid("the memory map file names a frame or run that it does not have")
    if max(value.frame_layer, default=-1) >= len(value.layers) or value.frame_runs[-1] != len(value.by_frame):
        raise SnapshotInvalid("the memory map file names a layer that it does not have")
    for layer, present in zip(value.frame_layer, value.frame_present, strict=True):
        if present > 1 or (not present and not value.partial[layer]):
            raise SnapshotInvalid("the memory map file lacks a frame of a layer that is whole")


def _out(values: array[int]) -> bytes:
    if sys.byteorder != "little":
        values = array(values.typecode, values)
        values.byteswap()
    return values.tobytes()
