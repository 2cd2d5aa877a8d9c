from __future__ import annotations

import asyncio
import json
import socket
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from aiohttp import web

from perdure.context.log import ContextLog, NewEntry
from perdure.errors import NoSpace, StaleEpoch, Unavailable
from perdure.gateway.gateway import Gateway
from perdure.gateway.providers import Providers, RemoteProvider
from perdure.gateway.upstream import Retry
from perdure.model import Call
from perdure.testing.speeches import chat as completion
from perdure.testing.speeches import chat_events as events

from .conftest import RUN, Provider, ask, chat, providers_of, read

pytestmark = pytest.mark.timeout(30)


async def kinds(log: ContextLog) -> list[str]:
    return [entry.kind for entry in await log.read(RUN)]


async def test_a_turn_is_recorded_and_answered_again_from_the_log(
    gateway: Gateway, provider: Provider, log: ContextLog
) -> None:
    provider.acts = [provider.says("hello")]
    first = await gateway.answer(chat(), 1)
    body = await read(first)
    assert first.status == 200 and json.loads(body) == completion("hello")
    again = await gateway.answer(chat(), 1)
    assert await read(again) == body and again.headers == first.headers
    assert len(provider.asked) == 1
    intent, started, committed = await log.read(RUN)
    assert [intent.kind, started.kind, committed.kind] == ["model.intent", "model.started", "model.committed"]
    assert {entry.key for entry in (intent, started, committed)} == {"main/1"}
    assert intent.payload["messages"] == [{"role": "user", "content": "hi"}]
    usage = {"input_tokens": 7, "output_tokens": 2, "cached_tokens": 0, "cache_written_tokens": 0}
    assert committed.payload["usage"] == usage and committed.payload["stop_reason"] == "stop"
    assert intent.payload["dialect"] == "openai-chat"
    assert committed.payload["text"] == "hello"
    assert await log.get_blob(committed.payload["body"]) == body


async def test_a_call_under_the_key_of_one_that_is_under_way_is_refused_unless_it_is_the_same(
    gateway: Gateway, provider: Provider, log: ContextLog
) -> None:
    provider.acts = [provider.says("hello")]
    first = asyncio.create_task(gateway.answer(chat(), 1))
    await asyncio.sleep(0)  # it has its turn, and the log has nothing yet
    for other in (chat(model="other"), replace(chat(), path="/v1/messages")):
        refused = await gateway.answer(other, 1)
        error = json.loads(await read(refused))["error"]
        assert (refused.status, error["code"], refused.headers["x-should-retry"]) == (409, "conflict", "false")
        assert "another call is under way as main/1" in error["message"]
    same = await gateway.answer(chat(), 1)
    assert await read(same) == await read(await first)
    assert await kinds(log) == ["model.intent", "model.started", "model.committed"]


async def test_what_the_log_was_seen_not_to_have_is_looked_up_again_if_a_turn_has_ended_since(
    gateway: Gateway, provider: Provider, log: ContextLog
) -> None:
    provider.acts = [provider.says("hello")]
    seen = gateway.turns_ended
    body = await read(await gateway.answer(chat(), 1, new_at=seen))
    assert await read(await gateway.answer(chat(), 1, new_at=seen)) == body  # whoever looked before that turn began
    assert len(provider.asked) == 1
    assert await kinds(log) == ["model.intent", "model.started", "model.committed"]


async def test_a_later_epoch_is_answered_from_the_log_and_that_is_recorded_once(
    gateway: Gateway, provider: Provider, log: ContextLog
) -> None:
    provider.acts = [provider.says("hello")]
    body = await read(await gateway.answer(chat(), 1))
    await log.append(RUN, [NewEntry(kind="run.recovering")], epoch=2)
    for _ in range(2):
        assert await read(await gateway.answer(chat(epoch=2), 1)) == body
    assert (await kinds(log)).count("model.replayed") == 1
    assert len(provider.asked) == 1


async def test_the_answer_begins_at_the_offset(gateway: Gateway, provider: Provider) -> None:
    provider.acts = [provider.says("hello")]
    body = await read(await gateway.answer(chat(), 1))
    assert await read(await gateway.answer(chat(offset=10), 1)) == body[10:]
    assert await read(await gateway.answer(chat(offset=len(body)), 1)) == b""


async def test_a_stream_is_handed_on_unbuffered_and_byte_exact(
    gateway: Gateway, provider: Provider, log: ContextLog
) -> None:
    pieces = events("a", "b", "c")
    provider.acts = [provider.streams(pieces, hold_after=1)]
    answer = await gateway.answer(chat(stream=True), 1)
    assert answer.headers["content-type"] == "text/event-stream" and answer.headers["x-request-id"] == "req-1"
    body = aiter(answer.body)
    assert await anext(body) == pieces[0]  # while the provider has not said the rest yet
    provider.go.set()
    assert pieces[0] + b"".join([piece async for piece in body]) == b"".join(pieces)
    committed = (await log.read(RUN))[-1]
    assert committed.payload["text"] == "abc" and committed.payload["usage"]["output_tokens"] == 3
    assert await read(await gateway.answer(chat(stream=True), 1)) == b"".join(pieces)


async def test_done_is_told_only_when_the_turn_is_in_the_log(
    gateway: Gateway, provider: Provider, log: ContextLog
) -> None:
    provider.acts = [provider.streams(events("a"))]
    answer = await gateway.answer(chat(stream=True), 1)
    async for piece in answer.body:
        if b"[DONE]" in piece:
            assert (await kinds(log))[-1] == "model.committed"
            return
    pytest.fail("no [DONE] came")


async def test_a_second_asker_joins_the_call_in_flight(gateway: Gateway, provider: Provider, log: ContextLog) -> None:
    """The VM dies in mid-answer; the provider's stream is drained, and the recovered VM gets it, from its offset."""
    pieces = events("a", "b", "c")
    provider.acts = [provider.streams(pieces, hold_after=2)]
    first = await gateway.answer(chat(stream=True), 1)
    body = aiter(first.body)
    await anext(body)
    await first.body.aclose()  # type: ignore[attr-defined]  # it is an async generator
    await log.append(RUN, [NewEntry(kind="run.recovering")], epoch=2)
    second = await gateway.answer(chat(stream=True, epoch=2), 1)
    third = await gateway.answer(chat(stream=True, epoch=2, offset=5), 1)
    provider.go.set()
    assert await read(second) == b"".join(pieces)
    assert await read(third) == b"".join(pieces)[5:]
    assert len(provider.asked) == 1
    found = await kinds(log)
    assert found.count("model.replayed") == 1 and found.count("model.committed") == 1


async def test_an_asker_that_is_cancelled_cancels_nothing(
    gateway: Gateway, provider: Provider, log: ContextLog
) -> None:
    provider.acts = [provider.streams(events("a"), hold_after=0)]
    asker = asyncio.create_task(gateway.answer(chat(stream=True), 1))
    await provider.reached.wait()
    asker.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asker
    assert gateway.is_in_flight(RUN)
    provider.go.set()
    assert await read(await gateway.answer(chat(stream=True), 1)) == b"".join(events("a"))
    assert len(provider.asked) == 1


async def test_many_askers_at_once_are_one_call(gateway: Gateway, provider: Provider) -> None:
    provider.acts = [provider.says("once")]
    answers = await asyncio.gather(*(gateway.answer(chat(), 1) for _ in range(20)))
    assert len({await read(answer) for answer in answers}) == 1
    assert len(provider.asked) == 1


async def test_different_keys_are_different_calls(gateway: Gateway, provider: Provider) -> None:
    provider.acts = [provider.says("a"), provider.says("b")]
    one = await read(await gateway.answer(chat(1), 1))
    two = await read(await gateway.answer(chat(2), 1))
    assert one != two and len(provider.asked) == 2


@pytest.mark.parametrize("fault", ["refuses 429", "refuses 503", "breaks"])
async def test_faults_before_the_first_byte_are_asked_again(
    gateway: Gateway, provider: Provider, log: ContextLog, fault: str
) -> None:
    act = provider.breaks() if fault == "breaks" else provider.refuses(int(fault.split()[1]), {"retry-after": "0"})
    provider.acts = [act, provider.says("at last")]
    answer = await gateway.answer(chat(), 1)
    assert answer.status == 200 and b"at last" in await read(answer)
    found = await log.read(RUN)
    assert [entry.kind for entry in found] == ["model.intent", "model.started", "model.started", "model.committed"]
    assert found[2].payload["attempt"] == 2 and found[2].payload["after"]


async def test_a_refusal_is_passed_on_and_not_committed(gateway: Gateway, provider: Provider, log: ContextLog) -> None:
    provider.acts = [provider.refuses(400), provider.says("fine")]
    answer = await gateway.answer(chat(), 1)
    assert answer.status == 400 and json.loads(await read(answer))["error"]["code"] == "y"
    assert (await kinds(log))[-1] == "model.aborted"


@pytest.mark.parametrize("fault", ["refusal", "broken stream"])
async def test_what_a_program_was_told_instead_of_a_turn_is_told_again(
    provider: Provider, log: ContextLog, fault: str
) -> None:
    """It may have gone on from it: another answer now would lead it another way than its log."""
    pieces, stream = events("a", "b"), fault != "refusal"
    act = provider.streams(pieces, cut_after=1) if stream else provider.refuses(400)
    provider.acts = [act, provider.streams(pieces) if stream else provider.says("fine")]
    async with Gateway(log, providers_of(provider)) as gateway:
        first = await gateway.answer(chat(stream=stream), 1)
        told = await read(first)
        assert told and b'"error"' in told
        again = await gateway.answer(chat(stream=stream, offset=3), 1)
        assert (again.status, await read(again)) == (first.status, told[3:])
    async with Gateway(log, providers_of(provider)) as fresh:
        again = await fresh.answer(chat(stream=stream), 1)
        assert (again.status, await read(again), again.headers) == (first.status, told, first.headers)
    assert len(provider.asked) == 1


async def test_a_provider_that_never_answers_is_an_error_in_openai_shape(log: ContextLog) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        nobody = Providers({"nobody": RemoteProvider("nobody", url)}, "nobody")
        async with Gateway(log, nobody, retry=Retry(attempts=2, first_s=0.01)) as gateway:
            answer = await gateway.answer(chat(), 1)
            error = json.loads(await read(answer))["error"]
    assert answer.status == 502 and error["code"] == "provider-failed" and "2 times" in error["message"]
    assert (await kinds(log)).count("model.started") == 2


async def test_a_stream_that_breaks_ends_in_an_error_event(
    gateway: Gateway, provider: Provider, log: ContextLog
) -> None:
    pieces = events("a", "b")
    provider.acts = [provider.streams(pieces, cut_after=1)]
    body = await read(await gateway.answer(chat(stream=True), 1))
    assert body.startswith(pieces[0]) and b'"provider-failed"' in body and b"[DONE]" not in body
    aborted = (await log.read(RUN))[-1]
    assert aborted.kind == "model.aborted" and aborted.payload["bytes"] == len(pieces[0])


async def test_a_stream_that_ends_early_is_no_turn(gateway: Gateway, provider: Provider, log: ContextLog) -> None:
    provider.acts = [provider.streams(events("a", "b")[:1])]
    assert b'"provider-failed"' in await read(await gateway.answer(chat(stream=True), 1))
    assert (await kinds(log))[-1] == "model.aborted"


async def test_a_server_that_died_in_mid_stream_asks_again(provider: Provider, log: ContextLog) -> None:
    pieces = events("a", "b")
    provider.acts = [provider.streams(pieces, hold_after=1), provider.streams(pieces)]
    dying = Gateway(log, providers_of(provider))
    answer = await dying.answer(chat(stream=True), 1)
    body = aiter(answer.body)
    await anext(body)
    await dying.close()
    with pytest.raises(Unavailable):  # an end would look like a whole answer
        await anext(body)
    async with Gateway(log, providers_of(provider)) as fresh:
        assert await read(await fresh.answer(chat(stream=True), 1)) == b"".join(pieces)
    assert await kinds(log) == ["model.intent", "model.started", "model.aborted", "model.started", "model.committed"]


async def test_a_guest_in_the_middle_of_a_lost_stream_is_told_so(provider: Provider, log: ContextLog) -> None:
    """It has bytes of an answer that exists nowhere: another answer's rest would not fit."""
    pieces = events("a", "b")
    provider.acts = [provider.streams(pieces, hold_after=1), provider.streams(pieces)]
    dying = Gateway(log, providers_of(provider))
    answer = await dying.answer(chat(stream=True), 1)
    seen = len(await anext(aiter(answer.body)))
    await dying.close()
    async with Gateway(log, providers_of(provider)) as fresh:
        told = await read(await fresh.answer(chat(stream=True, offset=seen), 1))
        assert b'"stream-lost"' in told and len(provider.asked) == 1
        for _ in range(2):  # asked again from there it is told again, and the log says so once
            lost = (await log.read(RUN))[-1]
            assert (lost.kind, lost.payload["told"], lost.payload["bytes"]) == ("model.aborted", "stream-lost", seen)
            assert "stream-lost" in lost.payload["reason"]
            assert b'"stream-lost"' in await read(await fresh.answer(chat(stream=True, offset=seen), 1))
        assert (await kinds(log)).count("model.aborted") == 1
        assert await read(await fresh.answer(chat(stream=True), 1)) == b"".join(pieces)


async def test_keys_stay_on_the_host(gateway: Gateway, provider: Provider, log: ContextLog) -> None:
    provider.acts = [provider.says("x")]
    answer = await gateway.answer(chat(), 1)
    assert provider.headers[0]["authorization"] == "Bearer sk-secret"
    assert provider.headers[0]["idempotency-key"] == f"perdure-{RUN}-1-main/1"
    stored = msgspec.json.encode(await log.read(RUN))
    assert b"sk-secret" not in stored and b"Bearer" not in stored
    assert "sk-secret" not in repr(providers_of(provider)) and "authorization" not in answer.headers


async def test_a_request_without_a_model_asks_the_providers_own(gateway: Gateway, provider: Provider) -> None:
    provider.acts = [provider.says("x")]
    await gateway.answer(chat(model=""), 1)
    assert provider.asked[0]["model"] == "default-model"


async def test_a_stale_epoch_may_not_spend(gateway: Gateway, provider: Provider, log: ContextLog) -> None:
    provider.acts = [provider.says("x")]
    await log.append(RUN, [NewEntry(kind="run.recovering")], epoch=5)
    with pytest.raises(StaleEpoch):
        await gateway.answer(chat(epoch=4), 1)
    assert not provider.asked and gateway.in_flight == 0


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"messages": []}', b'{"messages": [1], "model": 3}'])
async def test_a_bad_request_is_refused_and_costs_nothing(
    gateway: Gateway, provider: Provider, log: ContextLog, body: bytes
) -> None:
    answer = await gateway.answer(_with(chat(), body=body), 1)
    assert answer.status == 400 and "message" in json.loads(await read(answer))["error"]
    assert not provider.asked and not await kinds(log)


async def test_other_paths_and_the_list_of_models(gateway: Gateway) -> None:
    for path in ("/v2/chat", "/v1/", "/v1/../admin", "/v1/%2e%2e/admin", "/v1/a//b", "/v1/a b", "/v1/\u00fc"):
        answer = await gateway.answer(ask(path), 1)
        assert answer.status == 404 and b"the gateway has no POST /v" in await read(answer)
    assert (await gateway.answer(ask("/v1/files/1", method="DELETE"), 1)).status == 404
    models = await gateway.answer(_with(chat(), path="/v1/models", method="GET", body=b""), 1)
    assert json.loads(await read(models))["data"][0]["id"] == "default-model"


def _with(call: Call, **changes: object) -> Call:

    return replace(call, **changes)  # type: ignore[arg-type]


async def test_a_turn_that_cannot_be_kept_yet_is_not_lost(
    gateway: Gateway, provider: Provider, log: ContextLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refused = log.append, 0

    async def append(run_id: str, new: Any, **how: Any) -> Any:
        nonlocal refused
        if new[-1].kind == "model.committed" and refused < 2:
            refused += 1
            raise NoSpace("the disk is full")
        return await real(run_id, new, **how)

    monkeypatch.setattr(log, "append", append)
    provider.acts = [provider.says("paid for")]
    answer = await gateway.answer(chat(), 1)
    assert answer.status == 200 and b"paid for" in await read(answer)
    assert (await kinds(log))[-1] == "model.committed" and len(provider.asked) == 1
    assert refused == 2


async def test_nothing_is_asked_for_a_run_that_has_ended(provider: Provider, log: ContextLog) -> None:
    twice = asyncio.Event()

    async def refuse(request: web.Request) -> web.StreamResponse:
        if len(provider.asked) >= 2:
            twice.set()
        return web.Response(status=503)

    provider.acts = [refuse] * 100
    async with Gateway(log, providers_of(provider), retry=Retry(attempts=100, first_s=0.01, most_s=0.01)) as gateway:
        asker = asyncio.create_task(gateway.answer(chat(), 1))
        await asyncio.wait_for(twice.wait(), 10)
        await gateway.forget("another run")
        assert gateway.is_in_flight(RUN)
        await gateway.forget(RUN)
        assert not gateway.is_in_flight(RUN)
        with pytest.raises(Unavailable):
            await asker
    assert len(provider.asked) < 100


async def test_what_sdks_read_and_strict_json_is_not_is_no_fault(
    gateway: Gateway, provider: Provider, log: ContextLog
) -> None:
    """An emoji that a server cut between two tokens, and infinity: Python's JSON writes both, and reads them."""
    pieces = [
        b'data: {"choices":[{"index":0,"delta":{"content":"owl \\ud83e"},"logprobs":[-Infinity, 1e999]}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"content":"\\udd89"},"finish_reason":"stop"}]}\n\n',
        b"data: [DONE]\n\n",
    ]
    provider.acts = [provider.streams(pieces)]
    call = replace(chat(stream=True), body=b'{"stream":true,"messages":[{"role":"user","content":"\\ud83e"}]}')
    assert await read(await gateway.answer(call, 1)) == b"".join(pieces)
    assert provider.bodies == [b'{"model":"default-model",' + call.body[1:]]
    intent, _, committed = await log.read(RUN)
    assert intent.payload["messages"] == [{"role": "user", "content": "?"}]
    assert committed.kind == "model.committed" and committed.payload["text"] == "owl ??"
