"""The door for HTTP clients in a worker, against a server on a real socket that says what it was asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from perdure.replay.relay import BODY_MAX, Relay
from perdure.replay.wire import Wire


class Server:
    """Where a worker's calls go; ``answer`` makes what each is answered."""

    def __init__(self) -> None:
        self.asked: list[dict[str, str]] = []
        self.bodies: list[bytes] = []
        self.answer = web.Response

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(dict(request.headers))
        self.bodies.append(await request.read())
        made = self.answer()
        if isinstance(made, web.Response):
            return made
        assert request.transport is not None
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"half ")
        request.transport.abort()
        return response


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    made = Server()
    app = web.Application(client_max_size=1 << 26)
    app.router.add_post("/v1/calls", made.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "server.sock")).start()
    yield made
    await runner.cleanup()


@pytest.fixture
def relay(tmp_path: Path) -> Relay:
    return Relay(Wire(f"unix:{tmp_path / 'server.sock'}:/v1/calls", "r", 3, "token"))


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as made:
        yield made


async def test_a_request_is_a_call_and_its_answer_comes_back(
    server: Server, relay: Relay, client: aiohttp.ClientSession
) -> None:
    server.answer = lambda: web.Response(
        status=201, body=b"x" * 100_000, headers={"X-Of-Host": "1", "Location": "/p/a"}
    )
    url = f"{relay.url}/perdure/secret/github/a%2Fb?c=d"
    async with client.put(url, data=b"owls" * 50_000, headers={"X-Of-Program": "\u00fc"}) as answer:
        assert answer.status == 201 and await answer.read() == b"x" * 100_000
        assert answer.headers["x-of-host"] == "1" and answer.headers["location"] == f"{relay.word}/p/a"
    (asked,) = server.asked
    assert asked["Perdure-Method"] == "PUT" and asked["Perdure-Path"] == "/perdure/secret/github/a%2Fb?c=d"
    assert (asked["Perdure-Run"], asked["Perdure-Epoch"], asked["Perdure-Token"]) == ("r", "3", "token")
    assert "x-of-program" in json.loads(asked["Perdure-Headers"]) and server.bodies == [b"owls" * 50_000]
    for method in ("GET", "HEAD", "DELETE"):
        async with client.request(method, url) as answer:
            assert answer.status == 201 and len(await answer.read()) == (0 if method == "HEAD" else 100_000)
    assert len({asked["Perdure-Ordinal"] for asked in server.asked}) == 4


async def test_who_does_not_know_the_word_is_not_answered(
    server: Server, relay: Relay, client: aiohttp.ClientSession
) -> None:
    for path in ("/perdure/secret/github/x", f"/{'0' * 32}/perdure/secret/github/x", f"{relay.word}x/y"):
        async with client.get(relay.url.removesuffix(relay.word) + path) as answer:
            assert answer.status == 404
    assert not server.asked


async def test_a_body_may_come_in_chunks(server: Server, relay: Relay, client: aiohttp.ClientSession) -> None:
    """As of any client that does not know before how long it is; guestd takes them, too."""

    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b"owls", b"x" * 100_000, b"mice"):
            yield piece

    async with client.post(f"{relay.url}/x", data=pieces()) as answer:
        assert answer.status == 200
    assert server.bodies == [b"owls" + b"x" * 100_000 + b"mice"]


@pytest.mark.parametrize(
    ("head", "body", "status"),
    [
        (b"Content-Length: owls", b"", 400),
        (b"Content-Length: -1", b"", 400),
        ("Content-Length: \u00b2".encode("latin-1"), b"", 400),
        (b"Transfer-Encoding: gzip", b"", 400),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 3", b"0\r\n\r\n", 400),
        (b"Transfer-Encoding: chunked", b"owl\r\n", 400),
        (b"Transfer-Encoding: chunked", b"-1\r\n", 400),
        (b"Transfer-Encoding: chunked", b"3\r\nowls\r\n0\r\n\r\n", 400),
        (b"Content-Length: 5", b"owl", 400),
        (b"Content-Length: %d" % (BODY_MAX + 1), b"x" * (BODY_MAX + 1), 413),
    ],
)
async def test_a_request_that_is_none_says_so(
    server: Server, relay: Relay, head: bytes, body: bytes, status: int
) -> None:
    port = int(relay.url.rpartition(":")[2].partition("/")[0])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST %s/x HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n%s" % (relay.word.encode(), head, body))
    writer.write_eof()
    async with asyncio.timeout(10):
        told = await reader.readline()
    writer.close()
    assert told.split()[1] == str(status).encode() and not server.asked


async def test_a_path_that_is_no_text_is_refused(server: Server, relay: Relay) -> None:
    port = int(relay.url.rpartition(":")[2].partition("/")[0])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET %s/\xfc HTTP/1.1\r\nHost: x\r\n\r\n" % relay.word.encode())
    async with asyncio.timeout(10):
        assert (await reader.readline()).split()[1] == b"404"
    writer.close()


async def test_what_breaks_off_is_broken_for_its_client_too(
    server: Server, relay: Relay, client: aiohttp.ClientSession, capfd: pytest.CaptureFixture[str]
) -> None:
    answers: Any = iter([None, web.Response(text="whole")])
    server.answer = lambda: next(answers)
    with pytest.raises(aiohttp.ClientError):
        async with client.get(f"{relay.url}/x") as answer:
            await answer.read()
    async with client.get(f"{relay.url}/x") as answer:
        assert await answer.text() == "whole"
    assert capfd.readouterr() == ("", "")  # what a worker prints is its run's
