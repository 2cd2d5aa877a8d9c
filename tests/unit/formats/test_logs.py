"""Records of the log: they survive any cut of the bytes, and what is no record is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import ProtocolError
from perdure.formats import logs

RECORDS = st.lists(st.tuples(st.sampled_from([logs.STDOUT, logs.STDERR]), st.binary(min_size=1, max_size=300)))


@given(RECORDS, st.integers(1, 64))
def test_round_trip_in_pieces(records: list[tuple[int, bytes]], step: int) -> None:
    data = b"".join(logs.encode(stream, 5_000_000_000, text) for stream, text in records)
    decoder = logs.Decoder()
    found = [record for at in range(0, len(data), step) for record in decoder.feed(data[at : at + step])]
    assert [(record.stream, record.data) for record in found] == records
    assert all(record.time == 5.0 for record in found)
    assert decoder.pending == 0


@given(RECORDS, st.data())
def test_a_cut_leaves_whole_records_and_says_what_is_pending(
    records: list[tuple[int, bytes]], data: st.DataObject
) -> None:
    encoded = b"".join(logs.encode(stream, 0, text) for stream, text in records)
    cut = data.draw(st.integers(0, len(encoded)))
    decoder = logs.Decoder()
    found = list(decoder.feed(encoded[:cut]))
    whole = sum(logs.HEADER_BYTES + len(record.data) for record in found)
    assert whole + decoder.pending == cut
    assert [(record.stream, record.data) for record in found] == records[: len(found)]


def test_long_output_becomes_more_than_one_record() -> None:
    data = bytes(logs.DATA_MAX + 1)
    assert [len(record.data) for record in logs.Decoder().feed(logs.encode(1, 0, data))] == [logs.DATA_MAX, 1]


def test_what_is_no_record_is_refused() -> None:
    with pytest.raises(ProtocolError, match="not a log record"):
        list(logs.Decoder().feed(b"\x07" + bytes(40)))
    with pytest.raises(ProtocolError, match="position record"):
        logs.decode_position(b"short")


def test_positions() -> None:
    (record,) = logs.Decoder().feed(logs.encode_position(3, 1 << 40, 0))
    assert record.stream == logs.POSITION
    assert logs.decode_position(record.data) == {logs.STDOUT: 3, logs.STDERR: 1 << 40}
