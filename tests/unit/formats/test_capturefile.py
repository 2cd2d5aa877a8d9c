"""The capture file: round trip, and damage that must not become a snapshot."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import SnapshotInvalid
from perdure.formats import capturefile
from perdure.formats.blockmap import BASE, BLOCK, LAYER, NO_BASE, ZERO, Run
from perdure.formats.capturefile import CaptureFile

BASE_DIGEST = bytes(range(32))


@st.composite
def files(draw: st.DrawFn) -> tuple[int, list[Run], bytes, bytes]:
    base = draw(st.sampled_from([NO_BASE, BASE_DIGEST]))
    sources = [ZERO, LAYER] if base == NO_BASE else [ZERO, BASE, LAYER]
    runs, end, packed = [], 0, 0
    for _ in range(draw(st.integers(0, 12))):
        first, length, source = end + draw(st.integers(0, 3)), draw(st.integers(1, 3)), draw(st.sampled_from(sources))
        runs.append(Run(first, length, source, {ZERO: 0, BASE: first, LAYER: packed}[source]))
        end, packed = first + length, packed + (length if source == LAYER else 0)
    data = draw(st.binary(min_size=4, max_size=4)) * (packed * BLOCK // 4)
    return end + draw(st.integers(1, 9)), runs, data, base


def decoded(held: bytes) -> CaptureFile:
    return capturefile.decode(held)


@given(files())
def test_a_file_round_trips(file: tuple[int, list[Run], bytes, bytes]) -> None:
    blocks, runs, data, base = file
    found = decoded(capturefile.encode(blocks, runs, data, base))
    assert (found.blocks, found.runs, bytes(found.data), found.base) == (blocks, runs, data, base)
    assert b"".join(bytes(found.content(run)) for run in runs if run.source == LAYER) == data


@given(files(), st.integers(min_value=0), st.integers(0, 7))
def test_any_flipped_bit_is_refused(file: tuple[int, list[Run], bytes, bytes], place: int, bit: int) -> None:
    held = bytearray(capturefile.encode(*file))
    held[place % len(held)] ^= 1 << bit
    with pytest.raises(SnapshotInvalid):
        decoded(bytes(held))


@given(files(), st.integers(min_value=0))
def test_any_truncation_is_refused(file: tuple[int, list[Run], bytes, bytes], size: int) -> None:
    held = capturefile.encode(*file)
    with pytest.raises(SnapshotInvalid):
        decoded(held[: size % len(held)])
    with pytest.raises(SnapshotInvalid, match="where its header asks for"):
        decoded(held + bytes(size % 8192 + 1))


@given(st.binary(max_size=300))
def test_other_bytes_are_refused(held: bytes) -> None:
    with pytest.raises(SnapshotInvalid):
        decoded(held)


@pytest.mark.parametrize(
    ("blocks", "runs", "data_blocks"),
    [
        (8, [Run(0, 2, LAYER), Run(1, 1, ZERO)], 2),  # they overlap
        (8, [Run(0, 0, ZERO)], 0),
        (8, [Run(0, 1, 3)], 0),
        (8, [Run(0, 1, BASE)], 0),  # without a template
        (8, [Run(7, 2, ZERO)], 0),
        (8, [Run(0, 2**32 - 1, LAYER)], 1),
        (8, [Run(0, 2, LAYER)], 1),
        (8, [Run(0, 1, LAYER)], 2),
        (0, [], 0),
        (2**29, [], 0),
    ],
)
def test_what_contradicts_itself_is_refused(blocks: int, runs: list[Run], data_blocks: int) -> None:
    with pytest.raises(SnapshotInvalid):
        decoded(capturefile.encode(blocks, runs, b"x" * (data_blocks * BLOCK)))


def test_a_newer_version_is_refused_by_name() -> None:
    held = bytearray(capturefile.encode(1, [], b""))
    held[4] = 2
    with pytest.raises(SnapshotInvalid, match="version 2"):
        decoded(bytes(held))
