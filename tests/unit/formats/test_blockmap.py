"""Maps of blocks: arithmetic against a plain list, bytes against damage."""

from __future__ import annotations

import random
import zlib

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import SnapshotInvalid
from perdure.formats import blockmap
from perdure.formats.blockmap import BASE, DISK, LAYER, MEMORY, ROLE_FLAT, ROLE_LAYER, ZERO, Run

BLOCKS = 96


@st.composite
def layer_runs(draw: st.DrawFn, source: int = LAYER) -> list[Run]:
    """A layer's map over BLOCKS blocks: data packed in the order of its blocks, and zeros."""
    kinds = draw(st.lists(st.sampled_from([None, ZERO, source]), min_size=BLOCKS, max_size=BLOCKS))
    runs, packed = [], 0
    for number, kind in enumerate(kinds):
        if kind is not None:
            runs.append(Run(number, 1, kind, packed if kind == source else 0))
            packed += kind == source
    return blockmap.joined(runs)


def as_list(runs: list[Run]) -> list[tuple[int, int] | None]:
    """What each block is: (source, place), or None where no run has it."""
    seen: list[tuple[int, int] | None] = [None] * BLOCKS
    for run in runs:
        for step in range(run.length):
            assert seen[run.first + step] is None
            seen[run.first + step] = (run.source, 0 if run.source == ZERO else run.at + step)
    return seen


@given(layer_runs())
def test_a_layers_map_round_trips(runs: list[Run]) -> None:
    data = blockmap.encode(runs, kind=DISK, role=ROLE_LAYER, blocks=BLOCKS, layers=1, base=b"b" * 32)
    decoded = blockmap.decode(data)
    assert decoded.runs == runs
    assert decoded.base == b"b" * 32
    assert decoded.packed == sum(run.length for run in runs if run.source == LAYER)


@given(layer_runs(), st.randoms(use_true_random=False), st.booleans())
def test_a_layers_data_may_be_in_any_order(runs: list[Run], chance: random.Random, shared: bool) -> None:
    """As compaction packs it; and the same data may be named by several blocks."""
    blocks = [Run(run.first + step, 1, run.source) for run in runs for step in range(run.length)]
    data = [number for number, run in enumerate(blocks) if run.source == LAYER]
    places = list(range(len(data) // 2 + 1 if shared and data else len(data)))
    order = places + chance.choices(places or [0], k=len(data) - len(places))
    chance.shuffle(order)
    for number, place in zip(data, order, strict=True):
        blocks[number] = blocks[number]._replace(at=place)
    moved = blockmap.joined(blocks)
    encoded = blockmap.encode(moved, kind=MEMORY, role=ROLE_LAYER, blocks=BLOCKS, layers=1)
    decoded = blockmap.decode(encoded)
    assert decoded.runs == moved
    assert decoded.packed == len(places)
    assert encoded[4] == (blockmap.IN_ORDER if order == sorted(set(order)) else blockmap.MOVED)
    flat = [run._replace(source=LAYER) for run in moved if run.source == LAYER]
    assert as_list(blockmap.laid_over([], moved)) == as_list(flat)


def test_a_map_that_would_fill_the_memory_is_refused() -> None:
    """A few bytes that say they become gigabytes; the checksum is right."""
    body = zstandard.ZstdCompressor(write_checksum=False).compress(bytes(blockmap.COLUMNS_BYTES_MAX + 1))
    fields = (blockmap.MAGIC, 1, MEMORY, ROLE_FLAT, blockmap.BLOCK_SHIFT, 0, 1, 1 << 30, 1 << 30, 0, bytes(32),
              blockmap.COLUMNS_BYTES_MAX + 1)  # fmt: skip
    checksum = zlib.crc32(body, zlib.crc32(blockmap.HEADER.pack(*fields, 0)))
    with pytest.raises(SnapshotInvalid, match="more than any map of ours"):
        blockmap.decode(blockmap.HEADER.pack(*fields, checksum) + body)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.data())
def test_layers_laid_over_each_other_show_the_uppermost(shape: list[int], data: st.DataObject) -> None:
    flat = [Run(3, 40, BASE, 3)]
    expected = as_list(flat)
    for number in range(len(shape)):
        upper = data.draw(layer_runs(LAYER + number))
        flat = blockmap.laid_over(flat, upper)
        for block, seen in enumerate(as_list(upper)):
            if seen is not None:
                expected[block] = None if seen[0] == ZERO else seen
    assert as_list(flat) == expected
    assert flat == blockmap.joined(flat)
    encoded = blockmap.encode(flat, kind=MEMORY, role=ROLE_FLAT, blocks=BLOCKS, layers=len(shape))
    assert blockmap.decode(encoded).runs == flat


@given(layer_runs(), st.integers(min_value=0), st.integers(0, 7))
def test_any_flipped_bit_is_refused(runs: list[Run], place: int, bit: int) -> None:
    data = bytearray(blockmap.encode(runs, kind=DISK, role=ROLE_LAYER, blocks=BLOCKS, layers=1))
    data[place % len(data)] ^= 1 << bit
    with pytest.raises(SnapshotInvalid):
        blockmap.decode(bytes(data))


@given(layer_runs(), st.integers(min_value=1))
def test_any_truncation_is_refused(runs: list[Run], cut: int) -> None:
    data = blockmap.encode(runs, kind=DISK, role=ROLE_LAYER, blocks=BLOCKS, layers=1)
    with pytest.raises(SnapshotInvalid):
        blockmap.decode(data[: -(cut % len(data)) or 0])


@given(st.binary(max_size=200))
def test_foreign_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(SnapshotInvalid):
        blockmap.decode(data)


@pytest.mark.parametrize(
    ("runs", "role", "layers"),
    [
        ([Run(0, BLOCKS + 1, ZERO)], ROLE_LAYER, 1),  # beyond the end
        ([Run(0, 1, LAYER, 5)], ROLE_LAYER, 1),  # data that nobody names
        ([Run(0, 2, LAYER, 1), Run(5, 1, LAYER, 4), Run(6, 1, LAYER, 0)], ROLE_LAYER, 1),  # the same, in between
        ([Run(0, 1, BASE, 0)], ROLE_LAYER, 1),  # a layer that names its base
        ([Run(0, 1, ZERO)], ROLE_FLAT, 1),  # zeros are absence in a flat map
        ([Run(0, 1, LAYER + 3, 0)], ROLE_FLAT, 2),  # a layer that is not there
    ],
)
def test_maps_that_make_no_sense_are_refused(runs: list[Run], role: int, layers: int) -> None:
    data = blockmap.encode(runs, kind=MEMORY, role=role, blocks=BLOCKS, layers=layers)
    with pytest.raises(SnapshotInvalid):
        blockmap.decode(data)


def test_a_newer_version_says_so() -> None:
    data = bytearray(blockmap.encode([], kind=MEMORY, role=ROLE_FLAT, blocks=BLOCKS, layers=0))
    data[4] = 3
    with pytest.raises(SnapshotInvalid, match="version 3"):
        blockmap.decode(bytes(data))
