from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.gateway.events import Cutter, Event, event, read

_text = st.text(st.characters(exclude_characters="\r\n\x00", codec="utf-8"), max_size=8).map(str.encode)
_line = st.one_of(
    _text.map(lambda text: b"data: " + text),
    _text.map(lambda text: b"data:" + text),
    _text.map(lambda text: b": " + text),
    _text.map(lambda text: b"id: " + text),
    st.just(b"event: owl"),
    st.just(b"data"),
)
_event = st.lists(_line, min_size=1, max_size=4)


def _cut(whole: bytes, cuts: list[int]) -> list[bytes]:
    """The whole events of a body that comes in these pieces."""
    cutter, begun, found = Cutter(), b"", []
    for cut in [*cuts, len(whole)]:
        piece, whole = whole[:cut], whole[cut:]
        done = 0
        for end in cutter.ends(piece):
            found.append(begun + piece[done:end])
            begun, done = b"", end
        begun += piece[done:]
    return found


@given(st.lists(_event, max_size=5), st.sampled_from([b"\n", b"\r\n", b"\r"]), st.lists(st.integers(0, 9), max_size=40))
def test_events_are_the_same_however_they_are_cut(events: list[list[bytes]], new_line: bytes, cuts: list[int]) -> None:
    raw = [b"".join(line + new_line for line in [*lines, b""]) for lines in events]
    found = _cut(b"".join(raw), cuts)
    assert [read(one) for one in found if read(one) != Event("", b"")] == [
        read(one) for one in raw if read(one) != Event("", b"")
    ]
    assert b"".join(found).rstrip(b"\n") == b"".join(raw).rstrip(b"\n")  # a last \n may still be on its way


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"data: a\n\n", Event("", b"a")),
        (b"data:  a\ndata:b\r\ndata\rid: 3\r\r", Event("", b" a\nb\n")),
        (b": alive\n\n", Event("", b"")),
        (b"event: ping\nevent: owl\n\n", Event("owl", b"")),
        (b"\xef\xbb\xbfdata: a\n\n", Event("", b"a")),
        (b"\ndata: a", Event("", b"a")),
        (b"event: \xff\n\n", Event("\ufffd", b"")),
    ],
)
def test_what_an_event_says(raw: bytes, expected: Event) -> None:
    assert read(raw) == expected


@given(st.binary(), st.lists(st.integers(0, 5), max_size=10))
def test_any_bytes_are_cut_without_an_error(whole: bytes, cuts: list[int]) -> None:
    for one in _cut(whole, cuts):
        read(one)


def test_what_is_written_is_read() -> None:
    assert read(event(b'{"a": 1}', "owl")) == Event("owl", b'{"a": 1}')
    assert read(event(b"[DONE]")) == Event("", b"[DONE]")
