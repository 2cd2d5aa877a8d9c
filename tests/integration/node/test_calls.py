"""The forwarder against a real HTTP endpoint on a Unix socket that refuses, breaks and starts late."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

import pytest
from aiohttp import web

from perdure.errors import StaleEpoch
from perdure.model import CallsEndpoint
from perdure.node.calls import Forwarder

BODY = b"".join(b"%d," % number for number in range(1000))


class Asked:
    """What a guest asks, and what it was answered."""

    lane, ordinal, method, path = "auto", 3, "POST", "/v1/chat/completions"
    headers: Mapping[str, str] = {"accept": "text/event-stream", "x-ä": "ö"}
    body = b"question"

    def __init__(self, offset: int = 0) -> None:
        self.offset = offset
        self.responses: list[tuple[int, Mapping[str, str]]] = []
        self.received = b""
        self.ended = False

    async def respond(self, status: int, headers: Mapping[str, str]) -> None:
        self.responses.append((status, headers))

    async def write(self, data: bytes) -> None:
        self.received += data

    async def end(self) -> None:
        self.ended = True


Serve = Callable[[Callable[[web.Request], Awaitable[web.StreamResponse]]], Awaitable[CallsEndpoint]]


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    runners: list[web.AppRunner] = []

    async def serve(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> CallsEndpoint:
        app = web.Application()
        app.router.add_post("/v1/calls", handler)
        runner = web.AppRunner(app)
        runners.append(runner)
        await runner.setup()
        await web.UnixSite(runner, str(tmp_path / "s")).start()
        return endpoint(tmp_path)

    yield serve
    for runner in runners:
        await runner.cleanup()


def endpoint(folder: Path) -> CallsEndpoint:
    return CallsEndpoint(url=f"unix:{folder / 's'}:/v1/calls", run_id="run1", epoch=4, token="t0")


@pytest.fixture
async def forwarder() -> AsyncIterator[Forwarder]:
    forwarder = Forwarder()
    yield forwarder
    await forwarder.close()


async def test_what_is_asked_and_answered(serve: Serve, forwarder: Forwarder) -> None:
    seen: list[web.Request] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        seen.append(request)
        assert await request.read() == b"question"
        return web.Response(status=418, body=BODY, headers={"X-Kept": "1", "Connection": "close"})

    call = Asked()
    await forwarder.answer(await serve(handler), call)  # type: ignore[arg-type]
    headers = seen[0].headers
    assert {name: headers[f"Perdure-{name}"] for name in ("Run", "Epoch", "Token", "Lane", "Ordinal", "Offset")} == {
        "Run": "run1", "Epoch": "4", "Token": "t0", "Lane": "auto", "Ordinal": "3", "Offset": "0",
    }  # fmt: skip
    assert (headers["Perdure-Method"], headers["Perdure-Path"]) == ("POST", "/v1/chat/completions")
    assert json.loads(headers["Perdure-Headers"]) == call.headers
    ((status, answered),) = call.responses
    assert (status, call.received, call.ended) == (418, BODY, True)
    assert answered["x-kept"] == "1"
    assert not {"connection", "content-length", "transfer-encoding"} & set(answered)


async def test_refused_and_broken_answers_go_on_from_the_offset(serve: Serve, forwarder: Forwarder) -> None:
    offsets: list[int] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        offset = int(request.headers["Perdure-Offset"])
        offsets.append(offset)
        if len(offsets) == 1:
            return web.Response(status=503, headers={"Perdure-Retry": "1"})
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        if len(offsets) == 2:
            await response.write(BODY[offset : offset + 100])
            await asyncio.sleep(0)
            assert request.transport is not None
            request.transport.close()  # in the middle of the body
            return response
        await response.write(BODY[offset:])
        return response

    call = Asked(offset=10)
    await forwarder.answer(await serve(handler), call)  # type: ignore[arg-type]
    assert offsets[:2] == [10, 10]
    assert offsets[2] == 10 + 100
    assert call.received == BODY[10:]
    assert len(call.responses) == 1


async def test_an_endpoint_that_starts_late_is_waited_for(serve: Serve, forwarder: Forwarder, tmp_path: Path) -> None:
    async def handler(_: web.Request) -> web.StreamResponse:
        return web.Response(body=b"late")

    call = Asked()
    answering = asyncio.create_task(forwarder.answer(endpoint(tmp_path), call))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    await serve(handler)
    async with asyncio.timeout(20):
        await answering
    assert call.received == b"late"


async def test_a_stale_epoch_is_raised(serve: Serve, forwarder: Forwarder) -> None:
    async def handler(_: web.Request) -> web.StreamResponse:
        return web.json_response({"error": StaleEpoch("epoch 4 is over").to_json()}, status=410)

    with pytest.raises(StaleEpoch, match="epoch 4 is over"):
        await forwarder.answer(await serve(handler), Asked())  # type: ignore[arg-type]


async def test_a_503_that_is_the_answer_is_passed_on(serve: Serve, forwarder: Forwarder) -> None:
    async def handler(_: web.Request) -> web.StreamResponse:
        return web.Response(status=503, body=b"no model")

    call = Asked()
    await forwarder.answer(await serve(handler), call)  # type: ignore[arg-type]
    assert (call.responses[0][0], call.received) == (503, b"no model")


async def test_without_an_endpoint_the_guest_is_told(forwarder: Forwarder) -> None:
    call = Asked()
    await forwarder.answer(None, call)  # type: ignore[arg-type]
    assert call.responses[0][0] == 503
    told = json.loads(call.received)
    assert (told["type"], told["error"]["type"], told["error"]["code"]) == ("error", "api_error", "unavailable")
    assert "perdure run" in told["error"]["hint"]
    assert call.ended
