from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.gateway import dialects
from perdure.gateway.dialects.dialect import Dialect, MalformedError, Request, Summary, Usage
from perdure.gateway.events import event
from perdure.gateway.flow import Flow
from perdure.gateway.turn import Turn
from perdure.testing import speeches

from .conftest import ask

DIALECTS: list[Dialect] = [dialects.CHAT, dialects.RESPONSES, dialects.MESSAGES, dialects.OPENAI_OTHER]
SPEECHES: dict[str, Callable[..., list[bytes]]] = {
    "openai-chat": speeches.chat_events,
    "openai-responses": speeches.response_events,
    "anthropic-messages": speeches.message_events,
}
CHAT_USAGE = Usage(input_tokens=3, output_tokens=2)
RESPONSE_USAGE = Usage(input_tokens=40, output_tokens=6, cached_tokens=30, cache_written_tokens=4)


def streamed(dialect: Dialect, events: Sequence[bytes]) -> Summary:
    flow = Flow(dialect.reading())
    for one in events:
        flow.add(one)
    return flow.end()


def test_streams_are_read() -> None:
    assert streamed(dialects.CHAT, speeches.chat_events("h", "i")) == Summary(
        "hi", "real-model", CHAT_USAGE, "stop", finished=True
    )
    assert streamed(dialects.RESPONSES, speeches.response_events("h", "i")) == Summary(
        "hi", "real-model", RESPONSE_USAGE, "completed", ({"id": "call_1", "name": "look"},), finished=True
    )
    assert streamed(dialects.MESSAGES, speeches.message_events("h", "i")) == Summary(
        "hi",
        "real-model",
        Usage(input_tokens=105, output_tokens=33, cached_tokens=90, cache_written_tokens=10),
        "tool_use",
        ({"id": "toolu_1", "name": "look"},),
        finished=True,
    )


def test_whole_answers_are_read() -> None:
    chat = dialects.CHAT.whole(json.dumps(speeches.chat("hi")).encode())
    assert chat == Summary("hi", "real-model", Usage(7, 2), "stop", finished=True)
    response = dialects.RESPONSES.whole(json.dumps(speeches.response("hi")).encode())
    assert response == Summary("hi", "real-model", RESPONSE_USAGE, "completed", finished=True)
    message = dialects.MESSAGES.whole(json.dumps(speeches.message("hi")).encode())
    assert message == Summary("hi", "real-model", Usage(105, 2, 90, 10), "end_turn", finished=True)
    embedding = b'{"object": "list", "data": [], "model": "e", "usage": {"prompt_tokens": 8, "total_tokens": 8}}'
    assert dialects.OPENAI_OTHER.whole(embedding) == Summary(model="e", usage=Usage(8), finished=True)
    assert dialects.OPENAI_OTHER.whole(b"\x00") == Summary(finished=True)


def test_the_ends_of_a_response() -> None:
    limited = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    ended = streamed(dialects.RESPONSES, speeches.response_events("h", end="response.incomplete", **limited))
    assert ended.finished and ended.stop_reason == "max_output_tokens" and not ended.error
    error = {"status": "failed", "error": {"code": "server_error", "message": "owls"}}
    failed = streamed(dialects.RESPONSES, speeches.response_events("h", end="response.failed", **error))
    assert failed.error == "server_error: owls"


def test_several_choices_are_over_when_all_of_them_are() -> None:
    def chunk(index: int, reason: str | None) -> bytes:
        choice = {"index": index, "delta": {"content": str(index)}, "finish_reason": reason}
        return event(json.dumps({"choices": [choice]}).encode())

    told = [chunk(0, None), chunk(1, None), chunk(0, "stop")]
    assert not streamed(dialects.CHAT, told).finished
    over = streamed(dialects.CHAT, [*told, chunk(1, "length")])
    assert over.finished and over.text == "00" and over.stop_reason == "stop"


def test_tools_of_a_chat() -> None:
    def chunk(call: dict[str, Any]) -> bytes:
        return event(json.dumps({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}).encode())

    call = {"index": 0, "id": "c1", "function": {"name": "look", "arguments": ""}}
    parts = [chunk(call), chunk({"index": 0, "function": {"arguments": "{}"}}), chunk({**call, "index": 1, "id": "c2"})]
    found = streamed(dialects.CHAT, parts)
    assert found.tool_calls == ({"id": "c1", "name": "look"}, {"id": "c2", "name": "look"})


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_the_errors_of_the_house_are_read_as_such(dialect: Dialect) -> None:
    body = json.loads(dialect.error_body("owls", code="x", status=429))
    assert body["error"]["message"] == "owls" and body["error"]["code"] == "x"
    assert body["error"]["type"] == "rate_limit_error"
    found = streamed(dialect, [dialect.error_event("owls", code="x", number=3)])
    assert found.error == ("server_error: owls" if dialect is not dialects.MESSAGES else "api_error: owls")


def test_requests_are_read() -> None:
    body = b'{"model": "m", "stream": true, "messages": [1], "n": 2}'
    assert dialects.CHAT.request(body) == dialects.MESSAGES.request(body) == Request("m", True, [1], {"n": 2})
    said = dialects.RESPONSES.request(b'{"input": "hi", "instructions": "be brief"}')
    assert said == Request("", False, [{"role": "user", "content": "hi"}], {"instructions": "be brief"})
    assert dialects.RESPONSES.request(b'{"input": 3}') == "the request's input is neither a string nor a list"
    assert dialects.OPENAI_OTHER.request(b"--form") == Request()


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"messages": []}', b'{"model": 3}', b"[" * 9999, b'"\xff"'])
def test_what_is_wrong_with_a_request_is_said(body: bytes) -> None:
    assert isinstance(dialects.CHAT.request(body), str) and isinstance(dialects.MESSAGES.request(body), str)


_names = st.sampled_from(
    ["choices", "delta", "message", "usage", "model", "content", "type", "response", "output", "error", "index"]
)
_kinds = st.sampled_from(["", "error", "message_start", "content_block_start", "response.completed", "message_delta"])
_values = st.recursive(
    st.none() | st.integers() | st.text() | _kinds, lambda x: st.lists(x) | st.dictionaries(_names, x)
)


@given(_kinds, st.binary() | _values.map(lambda value: json.dumps(value).encode()), st.sampled_from(DIALECTS))
def test_any_bytes_are_read_without_another_error(name: str, body: bytes, dialect: Dialect) -> None:
    dialect.whole(body)
    dialect.request(body)
    try:
        streamed(dialect, [event(body, name)])
    except MalformedError:
        pass


@given(st.lists(st.integers(0, 60), max_size=8), st.integers(0, 2000), st.sampled_from(DIALECTS[:3]))
async def test_a_turn_hands_on_every_byte_however_it_is_cut(cuts: list[int], offset: int, dialect: Dialect) -> None:
    events = SPEECHES[dialect.name]("a", "[DONE]", "\ndata: [DONE]")
    whole = b"".join(events)
    turn, flow, rest = Turn(ask("/v1/x")), Flow(dialect.reading()), whole
    for cut in [*cuts, len(whole)]:
        turn.add(rest[:cut])
        flow.add(rest[:cut])
        turn.show(flow.visible)
        rest = rest[cut:]
        assert turn.visible == whole[: flow.visible] and turn.visible.endswith((b"\n\n", b""))
    assert turn.visible == b"".join(events[:-1])
    turn.end()
    async with asyncio.timeout(10):
        assert b"".join([piece async for piece in turn.read(offset)]) == whole[offset:]


@pytest.mark.parametrize("dialect", DIALECTS[:3], ids=lambda dialect: dialect.name)
def test_a_stream_that_is_cut_at_any_byte_is_known_as_such(dialect: Dialect) -> None:
    """And what says so stands behind whole events."""
    events = SPEECHES[dialect.name]("a", "b")
    whole, last = b"".join(events), len(b"".join(events[: -speeches.ENDS[dialect.name]]))
    for at in range(len(whole)):
        flow, is_finished = Flow(dialect.reading()), False
        flow.add(whole[:at])
        try:
            is_finished = flow.end().finished
        except MalformedError:
            pass
        assert not is_finished or (dialect is dialects.CHAT and at > last), at
        assert whole[: flow.visible].endswith(b"\n\n") or not flow.visible
        told = Flow(dialect.reading())
        told.add(whole[: flow.visible] + dialect.error_event("owls", code="x", number=flow.events))
        assert "owls" in told.end().error


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"a":1 }', b'{"model":"m","a":1 }'),
        (b' \n{ "a":1}', b' \n{ "model":"m","a":1}'),
        (b"{}", b'{"model":"m"}'),
        (b'{"model":"","a":1}', b'{"model":"m","a":1}'),
        (b'{"model":null}', b'{"model":"m"}'),
    ],
)
def test_a_model_is_named_where_none_is(body: bytes, expected: bytes) -> None:
    assert dialects.naming(body, "m") == expected


@pytest.mark.parametrize(
    ("path", "headers", "expected"),
    [
        ("/v1/chat/completions", {}, "openai-chat"),
        ("/v1/responses", {}, "openai-responses"),
        ("/v1/messages?beta=true", {"anthropic-version": "1"}, "anthropic-messages"),
        ("/v1/messages/count_tokens", {}, "anthropic-other"),
        ("/v1/complete", {"anthropic-version": "1"}, "anthropic-other"),
        ("/v1/embeddings", {}, "openai-other"),
    ],
)
def test_whose_call_it_is(path: str, headers: dict[str, str], expected: str) -> None:
    assert dialects.of(ask(path, headers=headers)).name == expected
