"""The unmodified SDKs of OpenAI and Anthropic, as programs in a guest use them: through HTTP, their calls counted on
lane ``auto``. Each scenario runs in every dialect."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import anthropic
import openai
import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perdure.context.log import ContextLog
from perdure.gateway.gateway import Gateway
from perdure.gateway.upstream import Retry
from perdure.model import Call
from perdure.testing import speeches

from .conftest import MESSAGES, RUN, Provider, ask, providers_of, read

pytestmark = pytest.mark.timeout(120)
ERRORS = (openai.APIError, anthropic.APIError)


class Program:
    """What a program in a guest has: one client of each SDK."""

    def __init__(self, url: str) -> None:
        # nothing here has TLS, and to read this machine's certificates takes longer than most tests
        plain, also_plain = (
            openai.DefaultAsyncHttpxClient(verify=False),
            anthropic.DefaultAsyncHttpxClient(verify=False),
        )
        self.openai = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="placeholder", http_client=plain)
        self.anthropic = anthropic.AsyncAnthropic(base_url=url, api_key="placeholder", http_client=also_plain)


class Door:
    """The gateway behind HTTP, as guestd and a node carry it; ``bodies`` are those that programs were sent."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.ordinals = itertools.count()
        self.bodies: list[bytes] = []
        self.program: Program

    async def handle(self, request: web.Request) -> web.StreamResponse:
        call = Call(
            run_id=RUN, epoch=1, lane="auto", ordinal=next(self.ordinals), method=request.method, path=request.path_qs,
            headers={name.lower(): value for name, value in request.headers.items()}, body=await request.read(),
        )  # fmt: skip
        answer = await self.gateway.answer(call, 1)
        response = web.StreamResponse(status=answer.status, headers=dict(answer.headers))
        await response.prepare(request)
        self.bodies.append(b"")
        async for piece in answer.body:
            self.bodies[-1] += piece
            await response.write(piece)
        return response


@pytest.fixture
async def door(gateway: Gateway) -> AsyncIterator[Door]:
    made = Door(gateway)
    app = web.Application(client_max_size=1 << 26)
    app.router.add_route("*", "/{path:.*}", made.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.program = Program(f"http://127.0.0.1:{runner.addresses[0][1]}")
    async with made.program.openai, made.program.anthropic:
        yield made
    await runner.cleanup()


async def _chat(program: Program) -> str:
    answer = await program.openai.chat.completions.create(model="any", messages=MESSAGES)  # type: ignore[arg-type]
    return answer.choices[0].message.content or ""


async def _chat_stream(program: Program) -> str:
    completions = program.openai.chat.completions
    async with completions.stream(model="any", messages=MESSAGES) as stream:  # type: ignore[arg-type]
        final = await stream.get_final_completion()
        return final.choices[0].message.content or ""


async def _responses(program: Program) -> str:
    return (await program.openai.responses.create(model="any", input="hi")).output_text


async def _responses_stream(program: Program) -> str:
    async with program.openai.responses.stream(model="any", input="hi") as stream:
        return (await stream.get_final_response()).output_text


async def _messages(program: Program) -> str:
    create = program.anthropic.messages.create
    answer = await create(model="any", max_tokens=9, messages=MESSAGES)  # type: ignore[arg-type]
    return "".join(block.text for block in answer.content if block.type == "text")


async def _messages_stream(program: Program) -> str:
    messages = program.anthropic.messages
    async with messages.stream(model="any", max_tokens=9, messages=MESSAGES) as stream:  # type: ignore[arg-type]
        answer = await stream.get_final_message()
        thought, _, used = answer.content
        assert thought.type == "thinking" and thought.signature == "c2ln"
        assert used.type == "tool_use" and used.input == {"at": "owls"} and answer.stop_reason == "tool_use"
        return "".join(block.text for block in answer.content if block.type == "text")


@dataclass(frozen=True)
class Way:
    """One dialect: what its provider says, and how a program asks with its SDK (the text it got)."""

    name: str
    path: str
    whole: dict[str, Any] = field(repr=False)
    events: list[bytes] = field(repr=False)
    error: bytes
    ask: Callable[[Program], Coroutine[Any, Any, str]]
    stream: Callable[[Program], Coroutine[Any, Any, str]]


WORDS = ("Owls ", "hunt\u00e9 ", "by night.")
TEXT = "".join(WORDS)
NEW = speeches.event(b'{"type": "of_tomorrow", "owls": 3}', "of_tomorrow")
COMMENT = b": is alive\n\n"


def _with(events: list[bytes], *more: bytes) -> list[bytes]:
    return [*events[:2], *more, *events[2:]]


WAYS = [
    Way(
        "openai-chat", "/v1/chat/completions", speeches.chat(TEXT), _with(speeches.chat_events(*WORDS), COMMENT),
        speeches.CHAT_ERROR, _chat, _chat_stream,
    ),
    Way(
        "openai-responses", "/v1/responses", speeches.response(TEXT), _with(speeches.response_events(*WORDS), COMMENT),
        speeches.RESPONSE_ERROR, _responses, _responses_stream,
    ),
    Way(
        "anthropic-messages", "/v1/messages", speeches.message(TEXT),
        _with(speeches.message_events(*WORDS), COMMENT, NEW), speeches.MESSAGE_ERROR, _messages, _messages_stream,
    ),
]  # fmt: skip
each_way = pytest.mark.parametrize("way", WAYS, ids=[way.name for way in WAYS])


async def kinds(log: ContextLog) -> list[str]:
    return [entry.kind for entry in await log.read(RUN, limit=100_000)]


@each_way
async def test_a_whole_answer_and_the_same_again_from_the_log(
    door: Door, provider: Provider, log: ContextLog, way: Way
) -> None:
    provider.acts = [provider.says(way.whole)]
    assert await way.ask(door.program) == TEXT
    door.ordinals = itertools.count()  # as after a restore
    assert await way.ask(door.program) == TEXT
    assert len(provider.asked) == 1 and door.bodies[0] == door.bodies[1]
    assert await kinds(log) == ["model.intent", "model.started", "model.committed"]
    intent, _, committed = await log.read(RUN)
    assert intent.payload["dialect"] == way.name and committed.payload["text"] == TEXT


@each_way
async def test_a_stream_is_byte_for_byte_what_the_provider_sent(
    door: Door, provider: Provider, log: ContextLog, way: Way
) -> None:
    provider.acts = [provider.streams(way.events)]
    assert await way.stream(door.program) == TEXT
    door.ordinals = itertools.count()
    async with Gateway(log, providers_of(provider)) as door.gateway:  # another server
        assert await way.stream(door.program) == TEXT
    assert door.bodies == [b"".join(way.events)] * 2 and len(provider.asked) == 1
    assert (await log.read(RUN))[-1].payload["text"] == TEXT


@each_way
@pytest.mark.parametrize("new_line", [b"\r\n", b"\r"])
async def test_lines_end_as_the_provider_ends_them(
    door: Door, provider: Provider, log: ContextLog, way: Way, new_line: bytes
) -> None:
    told = b"".join(way.events).replace(b"\n", new_line)
    provider.acts = [provider.streams([told[:7], told[7:101], told[101:]])]
    assert await way.stream(door.program) == TEXT
    assert door.bodies == [told] and (await kinds(log))[-1] == "model.committed"


@each_way
async def test_a_request_arrives_byte_for_byte(gateway: Gateway, provider: Provider, way: Way) -> None:
    provider.acts = [provider.says(way.whole)]
    odd = b' {"model" : "m\\u00fc", "max_tokens":9 ,"input":"hi","messages":[{"role":"user","content":"\xc3\xbc"}]}\n'
    await read(await gateway.answer(ask(way.path + "?beta=true", body=odd), 1))
    assert provider.bodies == [odd] and provider.paths == [way.path + "?beta=true"]
    nameless = b' { "messages" : [ {"role":"user","content":"\xc3\xbc"} ],"input":"hi" }'
    await read(await gateway.answer(ask(way.path, 2, body=nameless), 1))
    assert provider.bodies[1] == nameless.replace(b'{ "m', b'{ "model":"default-model","m', 1)


@each_way
async def test_an_error_inside_a_good_stream_is_an_error_of_the_sdk(
    door: Door, provider: Provider, log: ContextLog, way: Way
) -> None:
    told = [*way.events[:4], way.error]
    provider.acts = [provider.streams(told), provider.streams(told, cut_after=5)]
    for number in range(2):  # whether the provider then closes or breaks the connection
        with pytest.raises(ERRORS, match="Overloaded"):
            await way.stream(door.program)
        assert door.bodies[number] == b"".join(told)
        aborted = (await log.read(RUN))[-1]
        assert aborted.kind == "model.aborted" and "Overloaded" in aborted.payload["reason"]
    door.ordinals = itertools.count()
    with pytest.raises(ERRORS, match="Overloaded"):
        await way.stream(door.program)
    assert len(provider.asked) == 2


@each_way
@given(part=st.floats(0.0, 1.0, exclude_max=True), is_broken=st.booleans())
@settings(
    max_examples=settings().max_examples // 2,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    deadline=None,
)
async def test_a_stream_that_is_cut_anywhere_is_whole_or_an_error(
    door: Door, provider: Provider, log: ContextLog, way: Way, part: float, is_broken: bool
) -> None:
    """By a broken connection, or by an end that looks like a good one."""
    whole, last = b"".join(way.events), len(b"".join(way.events[: -speeches.ENDS[way.name]]))
    at, call = int(part * len(whole)), f"auto/{len(door.bodies)}"
    provider.acts = [provider.streams([whole[:at]], cut_after=1 if is_broken else None)]
    async with Gateway(log, providers_of(provider), retry=Retry(attempts=1)) as door.gateway:
        try:
            text = await way.stream(door.program)
        except ERRORS as error:
            assert "test" in str(error)  # the provider is named
            end = (await log.find(RUN, 1, call))[-1]
            assert end.kind == "model.aborted" and end.payload["answer"]
        else:
            end = (await log.find(RUN, 1, call))[-1]
            assert (text, end.kind) == (TEXT, "model.committed") and at > last


REFUSALS = [
    (400, openai.BadRequestError, anthropic.BadRequestError, 1),
    (401, openai.AuthenticationError, anthropic.AuthenticationError, 1),
    (429, openai.RateLimitError, anthropic.RateLimitError, 3),
    (500, openai.InternalServerError, anthropic.InternalServerError, 3),
    (529, openai.InternalServerError, anthropic.InternalServerError, 3),
]


@each_way
@pytest.mark.parametrize(("status", "of_openai", "of_anthropic", "asked"), REFUSALS)
@pytest.mark.parametrize("page", [b"", b"<html>"])
async def test_a_refusal_is_an_error_of_the_sdk_and_one_call(
    door: Door,
    provider: Provider,
    log: ContextLog,
    way: Way,
    status: int,
    of_openai: type[Exception],
    of_anthropic: type[Exception],
    asked: int,
    page: bytes,
) -> None:
    """The SDKs ask again by themselves; they are told that all was tried."""
    provider.acts = [provider.sends(page, "text/html", status=status) if page else provider.refuses(status)]
    with pytest.raises((of_openai, of_anthropic), match="test answered" if page else "no"):
        await way.ask(door.program)
    assert len(provider.asked) == asked and len(door.bodies) == 1
    assert (await kinds(log)).count("model.started") == asked and (await kinds(log))[-1] == "model.aborted"


@each_way
@pytest.mark.parametrize(
    ("is_stream", "body", "content_type", "told"),
    [
        (True, b"{}", "application/json", "not with a stream of events"),
        (True, b"<html>", "text/html", "not with a stream of events"),
        (False, b"{}", "text/event-stream", "not with JSON"),
        (False, b"<html>", "text/html", "not with JSON"),
        (False, b"<html>", "application/json", "not JSON"),
        (False, b'{"error": {"message": "over quota"}}', "application/json", "over quota"),
        (False, b"[]", "application/json", "not a JSON object"),
        (False, b"{}", "application/json", "this is no answer|no answer"),
    ],
)
async def test_an_answer_that_is_none_is_an_error(
    door: Door,
    provider: Provider,
    log: ContextLog,
    way: Way,
    is_stream: bool,
    body: bytes,
    content_type: str,
    told: str,
) -> None:
    provider.acts = [provider.sends(body, content_type)]
    with pytest.raises((openai.InternalServerError, anthropic.InternalServerError), match=told):
        await (way.stream if is_stream else way.ask)(door.program)
    assert len(provider.asked) == 1 and (await kinds(log))[-1] == "model.aborted"


@each_way
async def test_an_event_that_cannot_be_read_is_an_error(
    door: Door, provider: Provider, log: ContextLog, way: Way
) -> None:
    name = b"event: content_block_delta\n" if way.name == "anthropic-messages" else b""
    provider.acts = [provider.streams([*way.events[:4], name + b'data: {"a": \n\n', *way.events[4:]])]
    with pytest.raises(ERRORS, match="an event that cannot be read"):
        await way.stream(door.program)
    assert (await kinds(log))[-1] == "model.aborted"


@each_way
async def test_large_bodies(door: Door, provider: Provider, way: Way) -> None:
    large = "owls " * (4 << 20)
    found = {"chat": speeches.chat, "responses": speeches.response, "messages": speeches.message}
    provider.acts = [provider.says(found[way.name.split("-")[1]](large))]
    assert await way.ask(door.program) == large
    told = ask(way.path, 9, body=None)
    body = told.body[:-1] + b', "metadata": {"a": "' + large.encode() + b'"}}'
    assert (await door.gateway.answer(ask(way.path, 9, body=body), 1)).status == 200
    assert provider.bodies[-1] == body
