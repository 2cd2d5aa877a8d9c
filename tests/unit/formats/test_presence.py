"""Presence files: whatever happens to their bytes, they never name a frame that was not named before."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import SnapshotInvalid
from perdure.formats import presence

present = st.integers(0, 100).flatmap(
    lambda frames: st.tuples(st.just(frames), st.sets(st.integers(0, max(0, frames - 1))))
)


def made(frames: int, there: set[int]) -> presence.Presence:
    value = presence.empty(frames, 5000, 4000, 0xDEADBEEF)
    for number in there if frames else ():
        value.put(number)
    return value


@given(present)
def test_round_trip(case: tuple[int, set[int]]) -> None:
    frames, there = case
    value = made(frames, there)
    read = presence.decode(presence.encode(value))
    assert read == value
    assert [number for number in range(frames) if read.has(number)] == sorted(there if frames else ())
    assert read.complete == (len(there) == frames or not frames)


@given(present, st.integers(min_value=0), st.integers(0, 7))
def test_a_flipped_bit_is_refused(case: tuple[int, set[int]], place: int, bit: int) -> None:
    data = bytearray(presence.encode(made(*case)))
    data[place % len(data)] ^= 1 << bit
    with pytest.raises(SnapshotInvalid):
        presence.decode(bytes(data))


@given(present, st.integers(min_value=0))
def test_a_truncation_is_refused(case: tuple[int, set[int]], length: int) -> None:
    data = presence.encode(made(*case))
    with pytest.raises(SnapshotInvalid):
        presence.decode(data[: length % len(data)])


@given(st.binary(max_size=200))
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(SnapshotInvalid):
        presence.decode(data)


def test_what_is_dropped_is_not_there() -> None:
    value = made(20, {3, 4, 5})
    value.drop(4)
    value.drop(4)
    assert [number for number in range(20) if value.has(number)] == [3, 5]
