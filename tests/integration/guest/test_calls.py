"""What programs in a guest ask of the host over HTTP, and how an answer outlives connections."""

from __future__ import annotations

import asyncio
import json
import random
import resource
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import Unavailable
from perdure.execution.guest.session import GuestCall

from .conftest import DEADLINE_S, Guest


class Client:
    """A bare HTTP client: what it sends and gets is in the test, byte for byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def until(self, end: bytes) -> bytes:
        return await asyncio.wait_for(self.reader.readuntil(end), DEADLINE_S)

    async def head(self) -> tuple[int, dict[str, str]]:
        lines = (await self.until(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:] if line)
        return int(lines[0].split()[1]), {name.lower(): value for name, value in headers.items()}

    async def body(self, headers: dict[str, str]) -> bytes:
        if "content-length" in headers:
            return await asyncio.wait_for(self.reader.readexactly(int(headers["content-length"])), DEADLINE_S)
        if headers.get("transfer-encoding") != "chunked":
            return await asyncio.wait_for(self.reader.read(), DEADLINE_S)
        body = b""
        while size := int(await self.until(b"\r\n"), 16):
            body += await asyncio.wait_for(self.reader.readexactly(size), DEADLINE_S)
            assert await self.until(b"\r\n") == b"\r\n"
        assert await self.until(b"\r\n") == b"\r\n"
        return body

    async def answer(self) -> tuple[int, bytes]:
        status, headers = await self.head()
        return status, await self.body(headers)


@asynccontextmanager
async def client_of(guest: Guest) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", guest.http_port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.fixture
def many_files() -> Iterator[None]:
    """The test itself needs a descriptor for each connection."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, before[1]), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def descriptors(guest: Guest) -> int:
    return len(list(Path(f"/proc/{guest.pid}/fd").iterdir()))


async def until(over: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not over():  # noqa: ASYNC110 - proc(5) tells nobody
            await asyncio.sleep(0.01)


async def next_call(guest: Guest) -> GuestCall:
    return await asyncio.wait_for(guest.calls.get(), DEADLINE_S)


async def reply(call: GuestCall, body: bytes, status: int = 200, **headers: str) -> None:
    await call.respond(status, {name.replace("_", "-"): value for name, value in headers.items()})
    await call.write(body)
    await call.end()


async def echo(call: GuestCall) -> None:
    await reply(call, f"{call.lane}/{call.ordinal} {call.method} {call.path} ".encode() + call.body)


async def test_requests_become_calls_with_keys(guest: Guest) -> None:
    guest.answer = echo
    async with client_of(guest) as client:
        await client.send(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await client.answer() == (200, b"auto/1 GET /v1/models ")
        await client.send(
            b"POST /a?b HTTP/1.1\r\nContent-Length: 5\r\nPerdure-Lane: main\r\nPerdure-Ordinal: 41\r\n\r\nhello"
        )
        assert await client.answer() == (200, b"main/41 POST /a?b hello")
        await client.send(
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;x\r\n world\r\n0\r\n\r\n"
        )
        assert await client.answer() == (200, b"auto/2 POST / hello world")
    calls = [guest.calls.get_nowait() for _ in range(3)]
    assert calls[0].headers == {"host": "x"}
    assert calls[1].headers["perdure-lane"] == "main"


async def test_answers_are_framed_for_the_client(guest: Guest) -> None:
    async def answer(call: GuestCall) -> None:
        headers = {"content-length": "4"} if call.path == "/sized" else {"x-kind": "stream"}
        await reply(call, b"" if call.method == "HEAD" or call.path == "/none" else b"four", **headers)

    guest.answer = answer
    async with client_of(guest) as client:
        await client.send(b"GET /sized HTTP/1.1\r\n\r\n")
        status, headers = await client.head()
        assert (status, headers) == (200, {"content-length": "4"})
        assert await client.body(headers) == b"four"
        await client.send(b"HEAD /sized HTTP/1.1\r\n\r\n")
        assert (await client.head())[1] == {"content-length": "4"}
        await client.send(b"GET /stream HTTP/1.1\r\n\r\n")
        status, headers = await client.head()
        assert headers == {"x-kind": "stream", "transfer-encoding": "chunked"}
        assert await client.body(headers) == b"four"
        await client.send(b"GET /none HTTP/1.1\r\nConnection: close\r\n\r\n")
        status, headers = await client.head()
        assert headers["connection"] == "close"
        assert await client.body(headers) == b""
        assert await client.reader.read() == b""
    async with client_of(guest) as client:
        await client.send(b"GET /stream HTTP/1.0\r\n\r\n")
        status, headers = await client.head()
        assert headers == {"x-kind": "stream", "connection": "close"}
        assert await client.body(headers) == b"four"


async def test_requests_sent_together_are_answered_one_after_the_other(guest: Guest) -> None:
    guest.answer = echo
    async with client_of(guest) as client:
        await client.send(
            b"POST /1 HTTP/1.1\r\nContent-Length: 1\r\n\r\nxGET /2 HTTP/1.1\r\n\r\nGET /3 HTTP/1.1\r\n\r\n"
        )
        assert [await client.answer() for _ in range(3)] == [
            (200, b"auto/1 POST /1 x"),
            (200, b"auto/2 GET /2 "),
            (200, b"auto/3 GET /3 "),
        ]


async def test_expect_100_continue(guest: Guest) -> None:
    guest.answer = echo
    async with client_of(guest) as client:
        await client.send(b"POST / HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(b"ok")
        assert await client.answer() == (200, b"auto/1 POST / ok")


@pytest.mark.parametrize(
    ("request_bytes", "status", "words"),
    [
        (b"nonsense\r\n\r\n", 400, "request line"),
        (b"GET / HTTP/2.0\r\n\r\n", 400, "request line"),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400, "header"),
        (b"GET / HTTP/1.1\r\nA: b\r\n folded\r\n\r\n", 400, "header"),
        (b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400, "content-length"),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, "content-length"),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "together"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 501, "chunked"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 400, "chunk"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n", 400, "chunk"),
        (b"POST / HTTP/1.1\r\nContent-Length: 33554433\r\n\r\n", 413, "32 MiB"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2000001\r\n", 413, "32 MiB"),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * 70_000 + b"\r\n\r\n", 431, "64 KiB"),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431, "128 lines"),
        (b"GET / HTTP/1.1\r\nPerdure-Ordinal: 1\r\n\r\n", 400, "goes with a lane"),
        (b"GET / HTTP/1.1\r\nPerdure-Lane: auto\r\nPerdure-Ordinal: 1\r\n\r\n", 400, "is not 'auto'"),
        (b"GET / HTTP/1.1\r\nPerdure-Lane: auto\r\n\r\n", 400, "is not 'auto'"),
        (b"GET / HTTP/1.1\r\nPerdure-Lane: a\xff\r\n\r\n", 400, "of UTF-8"),
        (b"GET / HTTP/1.1\r\nPerdure-Lane: " + b"x" * 129 + b"\r\n\r\n", 400, "1 to 128"),
        (b"GET / HTTP/1.1\r\nPerdure-Lane: a b\r\n\r\n", 400, "1 to 128"),
        (b"GET / HTTP/1.1\r\nPerdure-Lane: a\r\nPerdure-Ordinal: one\r\n\r\n", 400, "is a number"),
    ],
)
async def test_what_is_not_a_request_gets_a_clear_answer(
    guest: Guest, request_bytes: bytes, status: int, words: str
) -> None:
    async with client_of(guest) as client:
        await client.send(request_bytes)
        found, body = await client.answer()
        assert found == status
        assert words in json.loads(body)["error"]["message"]
        assert await client.reader.read() == b""
    assert guest.calls.empty()


LONG = b"A: " + b"x" * 70_000 + b"\r\n\r\n"
TOO_LARGE = b"Content-Length: 33554433\r\n\r\n"
OF_OPENAI = [b"/v1/chat/completions", b"/v1/responses?a=b", b"/v1/embeddings", b"/v1/messages-of-others"]
OF_ANTHROPIC = [b"/v1/messages", b"/v1/messages?beta=true", b"/v1/messages/count_tokens"]


@pytest.mark.parametrize(
    ("rest", "status", "code", "of_openai", "of_anthropic"),
    [
        (b"no colon\r\n\r\n", 400, "invalid-value", "invalid_request_error", "invalid_request_error"),
        (b"Perdure-Ordinal: 1\r\n\r\n", 400, "invalid-value", "invalid_request_error", "invalid_request_error"),
        (TOO_LARGE, 413, "too-large", "invalid_request_error", "request_too_large"),
        (LONG, 431, "too-large", "invalid_request_error", "invalid_request_error"),
        (b"A: b\r\n" * 200, 431, "too-large", "invalid_request_error", "invalid_request_error"),
        (b"Transfer-Encoding: gzip\r\n\r\n", 501, "unsupported", "server_error", "api_error"),
    ],
)
async def test_a_call_of_a_model_is_refused_in_the_words_of_its_api(
    guest: Guest, rest: bytes, status: int, code: str, of_openai: str, of_anthropic: str
) -> None:
    async def told(path: bytes, headers: bytes = b"") -> dict[str, Any]:
        async with client_of(guest) as client:
            await client.send(b"POST %s HTTP/1.1\r\n" % path + headers + rest)
            found, body = await client.answer()
            assert found == status
            value = json.loads(body)
            assert value["error"].pop("message").startswith("guestd: ")
            return dict(value)

    for path in OF_OPENAI:
        assert await told(path) == {"error": {"type": of_openai, "param": None, "code": code}}
    anthropic = {"type": "error", "error": {"type": of_anthropic, "code": code}}
    for path in OF_ANTHROPIC:
        assert await told(path) == anthropic
    if status != 431:  # of such a head no more than its first line is looked at
        assert await told(b"/v1/files", b"Anthropic-Version: 2023-06-01\r\n") == anthropic
    assert guest.calls.empty()


async def test_guestd_numbers_a_lane_that_is_named_alone(guest: Guest) -> None:
    guest.answer = echo
    async with client_of(guest) as client:
        for lane, ordinal in (("a", 0), ("b", 0), ("a", 1), ("b", 1)):
            await client.send(b"POST /x HTTP/1.1\r\nPerdure-Lane: %s\r\nContent-Length: 0\r\n\r\n" % lane.encode())
            status, headers = await client.head()
            assert (status, headers["perdure-lane"], headers["perdure-ordinal"]) == (200, lane, str(ordinal))
            await client.body(headers)
        await client.send(b"POST /x HTTP/1.1\r\nPerdure-Lane: a\r\nPerdure-Ordinal: 1\r\nContent-Length: 0\r\n\r\n")
        assert (await client.answer())[1] == b"a/1 POST /x "  # as it was told: the end of a step, for example
        await client.send(b"POST /perdure/v1/ordinal HTTP/1.1\r\nPerdure-Lane: a\r\nContent-Length: 0\r\n\r\n")
        assert await client.answer() == (200, b'{"ordinal": 2}\n')  # to ask with, as often as it takes
    calls = [guest.calls.get_nowait() for _ in range(guest.calls.qsize())]
    assert [(call.lane, call.ordinal) for call in calls] == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 1)]


async def test_an_open_call_is_asked_again_with_the_offset_reached(guest: Guest) -> None:
    body = bytes(range(256)) * 300
    async with client_of(guest) as client:
        await client.send(b"POST /slow HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        first = await next_call(guest)
        assert (first.body, first.offset) == (body, 0)
        await guest.cut()
        second = await next_call(guest)
        assert (second.lane, second.ordinal, second.body, second.offset) == ("auto", 1, body, 0)
        await second.respond(200, {"x-a": "1"})
        await second.write(b"one ")
        status, headers = await client.head()
        assert await client.until(b"one \r\n") == b"4\r\none \r\n"
        await guest.cut()
        third = await next_call(guest)
        assert third.offset == 4
        await third.respond(200, {"x-a": "not seen: the head has gone out"})
        await third.write(b"two")
        await third.end()
        assert (status, headers["x-a"], await client.body(headers)) == (200, "1", b"two")
        with pytest.raises(asyncio.QueueEmpty):
            guest.calls.get_nowait()


async def test_a_fresh_session_is_asked_what_is_open(guest: Guest) -> None:
    async with client_of(guest) as client:
        await client.send(b"GET /wait HTTP/1.1\r\nPerdure-Lane: l\r\nPerdure-Ordinal: 3\r\n\r\n")
        await next_call(guest)
        session = await guest.replace_session()
        call = await next_call(guest)
        assert session.info and session.info.open_calls == 1
        assert (call.lane, call.ordinal) == ("l", 3)
        await reply(call, b"late", 201)
        assert await client.answer() == (201, b"late")


async def test_a_long_answer_over_many_cuts_arrives_whole(guest: Guest) -> None:
    data = b"".join(b"%d\n" % n for n in range(400_000))

    async def answer(call: GuestCall) -> None:
        await call.respond(200, {})
        for at in range(call.offset, len(data), 9_999):
            await call.write(data[at : at + 9_999])
        await call.end()

    guest.answer = answer
    async with client_of(guest) as client, asyncio.timeout(2 * DEADLINE_S):
        await client.send(b"GET / HTTP/1.1\r\n\r\n")
        _, headers = await client.head()
        cutting = asyncio.create_task(_cut_again_and_again(guest))
        found = await client.body(headers)
        cutting.cancel()
    assert found == data
    assert guest.connections > 3


async def _cut_again_and_again(guest: Guest) -> None:
    while True:
        await guest.calls.get()
        await guest.cut()


async def test_a_client_that_does_not_read_holds_the_answer_back(guest: Guest) -> None:
    written = 0
    stopped = asyncio.Event()

    async def answer(call: GuestCall) -> None:
        nonlocal written
        await call.respond(200, {})
        while written < 64 << 20:
            try:
                async with asyncio.timeout(1):
                    await call.write(bytes(32 << 10))
            except TimeoutError:
                stopped.set()
                return
            written += 32 << 10

    guest.answer = answer
    async with client_of(guest) as client:
        await client.send(b"GET / HTTP/1.1\r\n\r\n")
        await asyncio.wait_for(stopped.wait(), DEADLINE_S)
        assert written < 32 << 20  # the kernel's socket buffers and one window


async def test_a_client_that_hangs_up_cancels_its_call(guest: Guest) -> None:
    cancelled = asyncio.Event()

    async def answer(call: GuestCall) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    guest.answer = answer
    async with client_of(guest) as client:
        await client.send(b"GET / HTTP/1.1\r\n\r\n")
        await next_call(guest)
    await asyncio.wait_for(cancelled.wait(), DEADLINE_S)
    await guest.cut()
    assert guest.session.info and guest.session.info.open_calls == 0
    assert guest.session.info.auto_ordinal == 1


async def test_errors_of_the_host_become_answers(guest: Guest) -> None:
    async def answer(call: GuestCall) -> None:
        if call.path == "/error":
            raise Unavailable("no provider", hint="set one up")
        await call.respond(200, {"content-length": "100"})
        await call.write(b"half")
        call.abort()

    guest.answer = answer
    async with client_of(guest) as client:
        await client.send(b"GET /error HTTP/1.1\r\n\r\n")
        status, body = await client.answer()
        assert (status, json.loads(body)["error"]["code"]) == (503, "unavailable")
        await client.send(b"GET /broken HTTP/1.1\r\n\r\n")
        await client.head()
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await client.until(b"never")


async def test_many_clients_at_once(guest: Guest) -> None:
    guest.answer = echo

    async def ask(number: int) -> None:
        async with client_of(guest) as client:
            for turn in range(3):
                request = f"POST /{number} HTTP/1.1\r\nPerdure-Lane: l{number}\r\nPerdure-Ordinal: {turn}\r\n"
                await client.send(f"{request}Content-Length: 2\r\n\r\nok".encode())
                assert await client.answer() == (200, f"l{number}/{turn} POST /{number} ok".encode())

    await asyncio.gather(*(ask(number) for number in range(100)))


async def test_calls_made_while_there_is_no_host_wait_for_it(guest: Guest) -> None:
    guest.session.connection_down()
    async with client_of(guest) as client:
        await client.send(b"GET / HTTP/1.1\r\n\r\n")
        guest.answer = echo
        await guest.cut()
        assert await client.answer() == (200, b"auto/1 GET / ")


async def test_connections_that_ask_nothing_shut_nobody_out(guest: Guest, many_files: None) -> None:
    """Thousands of them: idle, in the middle of a request, or refused. What waits for its answer has it."""
    said = [b"", b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nhalf", b"POST / HTTP/1.1\r\nA: ", b"nonsense\r\n\r\n"]
    async with client_of(guest) as waiting, AsyncExitStack() as others:
        await waiting.send(b"GET /slow HTTP/1.1\r\nPerdure-Lane: l\r\n\r\n")
        slow = await next_call(guest)
        for number in range(2000):
            client = await others.enter_async_context(client_of(guest))
            await client.send(said[number % len(said)])
        assert descriptors(guest) < 700
        guest.answer = echo
        async with client_of(guest) as last:
            await last.send(b"GET /last HTTP/1.1\r\n\r\n")
            assert await last.answer() == (200, b"auto/1 GET /last ")
        await reply(slow, b"at last")
        assert await waiting.answer() == (200, b"at last")
    await until(lambda: descriptors(guest) < 100)


async def test_a_call_too_many_is_told_so(guest: Guest, many_files: None) -> None:
    async with AsyncExitStack() as others:
        clients = [await others.enter_async_context(client_of(guest)) for _ in range(512)]
        for client in clients:
            await client.send(b"GET /wait HTTP/1.1\r\nPerdure-Lane: l\r\n\r\n")
        calls = [await next_call(guest) for _ in clients]
        told = {"message": "guestd: as many calls are open as may be at once", "code": "unavailable"}
        of_openai, of_anthropic = {"type": "server_error", "param": None}, {"type": "api_error"}
        for path, words in ((b"/wait", of_openai), (b"/v1/responses", of_openai), (b"/v1/messages", of_anthropic)):
            async with client_of(guest) as one_more:
                await one_more.send(b"GET %s HTTP/1.1\r\nPerdure-Lane: l\r\n\r\n" % path)
                status, body = await one_more.answer()
                assert (status, json.loads(body)["error"]) == (503, told | words)
        async with client_of(guest) as number:  # is asked of nobody
            await number.send(b"POST /perdure/v1/ordinal HTTP/1.1\r\nPerdure-Lane: l\r\n\r\n")
            assert await number.answer() == (200, b'{"ordinal": 512}\n')  # the one that was refused took none
        await reply(calls[0], b"over")
        async with client_of(guest) as again:
            await again.send(b"GET /again HTTP/1.1\r\n\r\n")
            assert (await next_call(guest)).path == "/again"


async def test_a_head_of_many_lines_is_refused_before_its_end(guest: Guest) -> None:
    async with client_of(guest) as client:
        await client.send(b"GET / HTTP/1.1\r\n" + b"A:b\r\n" * 130)
        status, body = await client.answer()
        assert status == 431 and "128 lines" in json.loads(body)["error"]["message"]


@pytest.mark.parametrize("seed", range(4))
async def test_noise_from_programs_costs_their_connections_only(guest: Guest, seed: int) -> None:
    """Requests that are cut, torn and mixed, of clients that hang up at any time, while the host comes and goes."""
    guest.answer = echo
    chance = random.Random(seed)
    pieces = [
        b"POST /a HTTP/1.1\r\n",
        b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Perdure-Lane: l\r\n",
        b"Perdure-Ordinal: 1\r\n",
        b"Expect: 100-continue\r\n",
        b"Connection: close\r\n",
        b"\r\n",
        b"hello",
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b"GET /perdure/v1/ordinal HTTP/1.1\r\nPerdure-Lane: l\r\n\r\n",
        b"HEAD / HTTP/1.0\r\n\r\n",
        b"\xff\x00",
    ]

    async def noise() -> None:
        async with client_of(guest) as client:
            with suppress(ConnectionError):
                for _ in range(chance.randrange(1, 12)):
                    piece = chance.choice(pieces)
                    await client.send(piece[: chance.randrange(len(piece) + 1)] if chance.random() < 0.2 else piece)
                if chance.random() < 0.5:
                    await client.reader.read(chance.randrange(1, 2000))

    async with asyncio.timeout(2 * DEADLINE_S):
        for _ in range(12):
            jobs = [asyncio.create_task(asyncio.wait_for(noise(), 0.2)) for _ in range(25)]
            await guest.cut()
            await asyncio.gather(*jobs, return_exceptions=True)
    async with client_of(guest) as client:
        await client.send(b"POST /still HTTP/1.1\r\nPerdure-Lane: last\r\nContent-Length: 2\r\n\r\nok")
        assert await client.answer() == (200, b"last/0 POST /still ok")
    await until(lambda: descriptors(guest) < 100)
