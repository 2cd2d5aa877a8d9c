"""The frames of the line: any cut of any sequence comes out whole, and what breaks the format is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import ProtocolError
from perdure.keeper import line

frames = st.lists(st.tuples(st.integers(0, line.WINDOW_MORE), st.binary(max_size=300)), max_size=8)


@given(frames, st.lists(st.integers(1, 400), max_size=20))
def test_any_cut_gives_the_same_frames(sent: list[tuple[int, bytes]], cuts: list[int]) -> None:
    stream = b"".join(line.encode(kind, payload) for kind, payload in sent)
    decoder = line.Decoder()
    got, at = [], 0
    for size in [*cuts, len(stream)]:
        got += list(decoder.feed(stream[at : at + size]))
        at += size
    assert got == sent
    assert len(decoder) == 0


@given(frames, st.integers(0, 2000))
def test_a_truncated_stream_gives_whole_frames_only(sent: list[tuple[int, bytes]], size: int) -> None:
    stream = b"".join(line.encode(kind, payload) for kind, payload in sent)
    got = list(line.Decoder().feed(stream[:size]))
    assert got == sent[: len(got)]


@given(st.binary(max_size=64))
def test_noise_is_refused_or_waits(noise: bytes) -> None:
    try:
        for kind, _ in line.Decoder().feed(noise):
            assert 0 <= kind <= line.WINDOW_MORE
    except ProtocolError:
        pass


@pytest.mark.parametrize("head", [b"\0\0\0\0\0", b"\xff\xff\xff\xff\0", b"\x01\0\0\0\x09"])
def test_lengths_and_kinds_out_of_range(head: bytes) -> None:
    with pytest.raises(ProtocolError):
        list(line.Decoder().feed(head))


@given(st.dictionaries(st.text(), st.one_of(st.text(), st.integers(), st.none(), st.booleans())))
def test_control_messages(message: dict[str, object]) -> None:
    [(kind, payload)] = line.Decoder().feed(line.encode_control(message))
    assert kind == line.CONTROL
    assert line.decode_control(payload) == message


@pytest.mark.parametrize("payload", [b"", b"[]", b"{", b"\xff", b"7", b"[" * 100_000])
def test_control_messages_that_are_none(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        line.decode_control(payload)


def test_a_control_message_larger_than_a_frame() -> None:
    with pytest.raises(ProtocolError):
        line.encode_control({"x": "y" * line.FRAME_MAX})


@given(st.binary(max_size=3 * line.CHUNK))
def test_channel_bytes_are_cut(data: bytes) -> None:
    got = list(line.Decoder().feed(line.encode_channel(data)))
    assert b"".join(payload for _, payload in got) == data
    assert all(kind == line.CHANNEL and 0 < len(payload) <= line.CHUNK for kind, payload in got)


def test_windows() -> None:
    [(kind, payload)] = line.Decoder().feed(line.encode_window(70_000))
    assert (kind, line.decode_window(payload)) == (line.WINDOW_MORE, 70_000)
    with pytest.raises(ProtocolError):
        line.decode_window(b"\0")


def test_the_frame_is_as_the_contract_writes_it() -> None:
    assert line.encode(1, b"ab") == b"\x03\0\0\0" + b"\x01" + b"ab"
    assert json.loads(line.encode_control({"id": 1})[5:]) == {"id": 1}
