"""The memory map file: round trip, and damage that must not reach the pager's loop."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import SnapshotInvalid
from perdure.formats import memorymap
from perdure.formats.memorymap import FRAME, MemoryMap, column, wide_column

GOLDEN = Path(__file__).parents[2] / "golden" / "memory-map-2" / "memory.map"  # never edited

u32 = st.integers(0, 2**32 - 1)


@st.composite
def maps(draw: st.DrawFn) -> MemoryMap:
    blocks = draw(st.integers(1, 5000))
    first = sorted({0, *draw(st.lists(st.integers(0, blocks - 1), max_size=20))})
    frames = draw(st.integers(0, 5))
    source = draw(st.lists(st.integers(0, FRAME + frames - 1), min_size=len(first), max_size=len(first)))
    by_frame = [run for frame in range(frames) for run, kind in enumerate(source) if kind == FRAME + frame]
    starts = [sum(kind < FRAME + frame and kind >= FRAME for kind in source) for frame in range(frames + 1)]
    layers = draw(st.lists(st.text(min_size=1, max_size=9), min_size=1, max_size=3))

    def some(values: st.SearchStrategy[int], count: int) -> list[int]:
        return draw(st.lists(values, min_size=count, max_size=count))

    return MemoryMap(
        blocks=blocks,
        template=draw(st.text()),
        layers=layers,
        partial=[True for _ in layers],
        first=column(first),
        source=column(source),
        at=column(some(u32, len(first))),
        frame_layer=column(some(st.integers(0, len(layers) - 1), frames)),
        frame_offset=wide_column(some(st.integers(0, 2**64 - 1), frames)),
        frame_compressed=column(some(u32, frames)),
        frame_blocks=column(some(u32, frames)),
        frame_checksum=column(some(u32, frames)),
        frame_number=column(some(u32, frames)),
        frame_present=column(some(st.integers(0, 1), frames)),
        frame_runs=column(starts),
        by_frame=column(by_frame),
        hot=column(draw(st.lists(u32, max_size=9))),
    )


@given(maps())
def test_a_map_round_trips(value: MemoryMap) -> None:
    decoded = memorymap.decode(memorymap.encode(value))
    assert decoded == value
    assert sum(decoded.count(run) for run in range(len(decoded.first))) == decoded.blocks


@given(maps(), st.integers(min_value=0), st.integers(0, 7))
def test_any_flipped_bit_is_refused(value: MemoryMap, place: int, bit: int) -> None:
    data = bytearray(memorymap.encode(value))
    data[place % len(data)] ^= 1 << bit
    with pytest.raises(SnapshotInvalid):
        memorymap.decode(bytes(data))


@given(maps(), st.integers(min_value=0))
def test_any_truncation_is_refused(value: MemoryMap, length: int) -> None:
    data = memorymap.encode(value)
    with pytest.raises(SnapshotInvalid):
        memorymap.decode(data[: length % len(data)])


@given(st.binary(max_size=300))
def test_foreign_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(SnapshotInvalid):
        memorymap.decode(data)


@given(maps())
def test_indexes_out_of_bounds_are_refused(value: MemoryMap) -> None:
    for broken in (
        value._replace(source=column([FRAME + len(value.frame_layer), *value.source[1:]])),
        value._replace(by_frame=column([*value.by_frame, len(value.first)])),
        value._replace(first=column([1, *value.first[1:]])),
        value._replace(blocks=value.first[-1]),
        value._replace(partial=[*value.partial, False]),
    ):
        with pytest.raises(SnapshotInvalid):
            memorymap.decode(memorymap.encode(broken))


def test_version_2_is_read() -> None:
    assert memorymap.decode(GOLDEN.read_bytes()) == MemoryMap(
        blocks=100,
        template="/templates/warm/memory",
        layers=["/store/a", "/cache/b \u00fc"],
        partial=[False, True],
        first=column([0, 10, 20, 30]),
        source=column([memorymap.ZERO, FRAME, memorymap.TEMPLATE, FRAME + 1]),
        at=column([0, 4, 0, 0]),
        frame_layer=column([0, 1]),
        frame_offset=wide_column([0, 5_000_000_000]),
        frame_compressed=column([500, 600]),
        frame_blocks=column([16, 70]),
        frame_checksum=column([7, 4_000_000_000]),
        frame_number=column([0, 5]),
        frame_present=column([1, 0]),
        frame_runs=column([0, 1, 2]),
        by_frame=column([1, 3]),
        hot=column([99, 0, 15]),
    )
