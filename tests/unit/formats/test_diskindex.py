"""Disk indexes: whatever happens to their bytes, they never say of a disk what was not said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import SnapshotInvalid
from perdure.formats import diskindex
from perdure.formats.diskindex import HASH_BYTES, DiskIndex, Stamp

numbers64 = st.integers(0, 2**64 - 1)
indexes = st.builds(
    DiskIndex,
    st.binary(min_size=32, max_size=32).map(lambda data: "sha256:" + data.hex()),
    st.builds(Stamp, st.binary(min_size=16, max_size=16), numbers64, numbers64, numbers64),
    st.dictionaries(st.integers(0, 2**32 - 1), st.binary(min_size=HASH_BYTES, max_size=HASH_BYTES), max_size=20),
)


@given(indexes)
def test_round_trip(index: DiskIndex) -> None:
    assert diskindex.decode(diskindex.encode(index)) == index


@given(indexes, st.integers(min_value=0), st.integers(0, 7))
def test_a_flipped_bit_is_refused(index: DiskIndex, place: int, bit: int) -> None:
    data = bytearray(diskindex.encode(index))
    data[place % len(data)] ^= 1 << bit
    with pytest.raises(SnapshotInvalid):
        diskindex.decode(bytes(data))


@given(indexes, st.integers(min_value=0))
def test_a_truncation_is_refused(index: DiskIndex, length: int) -> None:
    data = diskindex.encode(index)
    with pytest.raises(SnapshotInvalid):
        diskindex.decode(data[: length % len(data)])


@given(st.binary(max_size=300))
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(SnapshotInvalid):
        diskindex.decode(data)
