"""The channel's frames: every value survives the trip, and no damage does anything but raise ProtocolError."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import ProtocolError
from perdure.formats import channel

_text = st.binary(max_size=40).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "u8": st.integers(0, 2**8 - 1),
    "u16": st.integers(0, 2**16 - 1),
    "u32": st.integers(0, 2**32 - 1),
    "u64": st.integers(0, 2**64 - 1),
    "text": _text,
    "bytes": st.binary(max_size=40),
    "rest": st.binary(max_size=200),
    "texts": st.lists(_text, max_size=4).map(tuple),
    "headers": st.lists(st.tuples(_text, _text), max_size=4).map(tuple),
}


def _frames() -> st.SearchStrategy[channel.Frame]:
    def build(kind: type[channel.Frame]) -> st.SearchStrategy[channel.Frame]:
        return st.tuples(*(_VALUES[field] for field in kind.layout.split())).map(lambda values: kind(*values))

    return st.sampled_from(list(channel.FRAMES.values())).flatmap(build)


@given(st.lists(_frames(), max_size=5), st.integers(1, 50))
def test_frames_come_out_as_they_went_in_however_the_stream_is_cut(frames: list[channel.Frame], step: int) -> None:
    stream = b"".join(frame.encode() for frame in frames)
    reader = channel.FrameReader()
    found = [frame for at in range(0, len(stream), step) for frame in reader.feed(stream[at : at + step])]
    assert found == frames
    assert reader.pending_bytes == 0


@given(_frames(), st.data())
def test_a_truncated_payload_is_refused_or_another_valid_frame(frame: channel.Frame, data: st.DataObject) -> None:
    payload = frame.encode()[4:]
    cut = payload[: data.draw(st.integers(0, len(payload) - 1))]
    try:
        found = channel.decode(cut)
    except ProtocolError:
        return
    assert frame.layout.endswith("rest")  # only a frame that ends in free bytes can lose some unnoticed
    assert found.encode()[4:] == cut


@given(_frames(), st.data())
def test_a_flipped_bit_never_does_more_than_raise(frame: channel.Frame, data: st.DataObject) -> None:
    stream = bytearray(frame.encode())
    bit = data.draw(st.integers(0, len(stream) * 8 - 1))
    stream[bit // 8] ^= 1 << bit % 8
    reader = channel.FrameReader()
    try:
        for found in reader.feed(bytes(stream)):
            assert found.encode() in bytes(stream)
    except ProtocolError as error:
        assert error.message.startswith("channel: ")


@given(st.binary(max_size=300))
def test_noise_never_does_more_than_raise(noise: bytes) -> None:
    try:
        list(channel.FrameReader().feed(noise))
    except ProtocolError:
        pass


def test_a_length_beyond_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(ProtocolError, match="claims 1048577 bytes"):
        list(channel.FrameReader().feed((channel.MAX_FRAME_BYTES + 1).to_bytes(4, "little")))


def test_a_frame_too_long_to_send_is_refused() -> None:
    with pytest.raises(ValueError, match="is over"):
        channel.Output(1, 1, 0, bytes(channel.MAX_FRAME_BYTES)).encode()
    with pytest.raises(ValueError, match="does not fit u16"):
        channel.Welcome(1 << 16).encode()


def test_the_bytes_of_version_1_stay_as_they_are() -> None:
    assert channel.Welcome(1).encode().hex() == "03000000410100"
    assert channel.OutputAck(0x0123456789AB, 1, 5).encode().hex() == "1200000048ab8967452301000001" + "0500000000000000"
    assert channel.CallHead(7, 200, (("a", "b"),)).encode().hex() == (
        "190000004e0700000000000000c80001000000010000006101000000" + "62"
    )


ROOT = Path(__file__).parents[3]


def test_the_page_says_what_the_code_does() -> None:
    page = (ROOT / "docs/formats/channel.md").read_text()
    for number, kind in channel.FRAMES.items():
        names: tuple[str, ...] = kind.__slots__  # type: ignore[attr-defined]
        fields = ", ".join(f"{name} {field}" for name, field in zip(names, kind.layout.split(), strict=True))
        assert f"| 0x{number:02x} | {kind.__name__} | {fields or '(empty)'} |" in page


def test_guestd_numbers_the_frames_alike() -> None:
    header = (ROOT / "guest/frames.h").read_text()
    body = re.search(r"enum frame_type \{(.*?)\}", header, re.DOTALL)
    assert body
    number, found = 0, {}
    for item in filter(None, (item.strip() for item in body[1].split(","))):
        name, _, value = item.partition(" = ")
        number = int(value, 16) if value else number + 1
        found[number] = name.replace("_", "").lower()
    ours = {number: kind.__name__.lower() for number, kind in channel.FRAMES.items()}
    ours[channel.GuestProcess.type] = "process"
    assert found == ours
