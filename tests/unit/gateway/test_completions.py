from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from perdure.gateway.completions import Summary, summarize
from perdure.gateway.turn import Turn
from perdure.model import Call

from .conftest import completion, events


def test_whole_and_streamed_answers_are_read() -> None:
    whole = summarize(json.dumps(completion("hi")).encode(), stream=False)
    assert whole == Summary("hi", "real-model", 7, 2, finished=True)
    streamed = summarize(b"".join(events("h", "i")), stream=True)
    assert streamed == Summary("hi", "real-model", 3, 2, finished=True)
    assert not summarize(b"".join(events("h")[:1]), stream=True).finished


_names = st.sampled_from(["choices", "delta", "message", "usage", "model", "content"])
_values = st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(_names, x))


@given(st.binary() | _values.map(lambda value: json.dumps(value).encode()), st.booleans())
def test_any_bytes_are_read_without_an_error(body: bytes, stream: bool) -> None:
    summarize(body, stream=stream)
    summarize(b"data: " + body, stream=stream)


@given(st.lists(st.integers(1, 60), max_size=8), st.integers(0, 400))
async def test_a_turn_hands_on_every_byte_however_it_is_cut(cuts: list[int], offset: int) -> None:
    whole = b"".join(events("a", "[DONE]", "\ndata: [DONE]"))
    turn, rest = Turn(Call("run", 1, "main", 0, "POST", "/v1/chat/completions", {}, b"{}", 0)), whole
    for cut in cuts:
        turn.add(rest[:cut])
        rest = rest[cut:]
    turn.add(rest)
    turn.end()
    assert b"".join([piece async for piece in turn.read(offset)]) == whole[offset:]
