"""A real upstream: an OpenAI-compatible HTTP server whose answers, and faults, each test scripts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from perdure.context import sqlite
from perdure.context.log import ContextLog
from perdure.gateway.gateway import Gateway
from perdure.gateway.providers import Providers, RemoteProvider
from perdure.gateway.upstream import Retry
from perdure.model import Answer, Call

Act = Callable[[web.Request], Awaitable[web.StreamResponse]]
RUN = "0123456789ab"


def completion(text: str) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "real-model",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
    }


def events(*words: str) -> list[bytes]:
    """The events of a stream, one per word, a final one with the usage, and [DONE]."""
    base = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "real-model"}
    told: list[dict[str, Any]] = [
        {**base, "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]} for word in words
    ]
    told.append({**base, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    told.append({**base, "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": len(words)}})
    return [b"data: " + json.dumps(value).encode() + b"\n\n" for value in told] + [b"data: [DONE]\n\n"]


@dataclass
class Provider:
    """Answers with ``acts`` in turn, the last one again and again; keeps what it was asked."""

    acts: list[Act] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    go: asyncio.Event = field(default_factory=asyncio.Event)
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(await request.json())
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        act = self.acts.pop(0) if len(self.acts) > 1 else self.acts[0]
        return await act(request)

    def says(self, text: str) -> Act:
        async def act(request: web.Request) -> web.StreamResponse:
            return web.json_response(completion(text))

        return act

    def refuses(self, status: int, headers: dict[str, str] | None = None) -> Act:
        async def act(request: web.Request) -> web.StreamResponse:
            error = {"error": {"message": "no", "type": "x", "code": "y"}}
            return web.json_response(error, status=status, headers=headers)

        return act

    def streams(self, pieces: list[bytes], *, hold_after: int | None = None, cut_after: int | None = None) -> Act:
        """``hold_after`` pieces it waits for ``go``; ``cut_after`` pieces it breaks the connection."""

        async def act(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"content-type": "text/event-stream", "x-request-id": "req-1"})
            await response.prepare(request)
            for number, piece in enumerate(pieces):
                if number == hold_after:
                    self.reached.set()
                    await self.go.wait()
                if number == cut_after:
                    assert request.transport is not None
                    request.transport.abort()
                    return response
                await response.write(piece)
            return response

        return act

    def breaks(self) -> Act:
        async def act(request: web.Request) -> web.StreamResponse:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()

        return act


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    made = Provider()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", made.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    yield made
    made.go.set()
    await runner.cleanup()


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[ContextLog]:
    opened = await sqlite.open(tmp_path / "perdure.db")
    await opened.create(RUN, {})
    yield opened
    await opened.close()


def providers_of(provider: Provider) -> Providers:
    remote = RemoteProvider("test", provider.url, key="sk-secret", model="default-model")
    return Providers({"test": remote}, "test")


@pytest.fixture
async def gateway(log: ContextLog, provider: Provider) -> AsyncIterator[Gateway]:
    async with Gateway(log, providers_of(provider), retry=Retry(attempts=3, first_s=0.01, most_s=0.02)) as made:
        yield made


def chat(ordinal: int = 1, *, epoch: int = 1, offset: int = 0, stream: bool = False, **request: Any) -> Call:
    body: dict[str, Any] = {"model": "any", "messages": [{"role": "user", "content": "hi"}], **request}
    if stream:
        body["stream"] = True
    return Call(
        run_id=RUN, epoch=epoch, lane="main", ordinal=ordinal, method="POST", path="/v1/chat/completions",
        headers={"authorization": "Bearer guest"}, body=json.dumps(body).encode(), offset=offset,
    )  # fmt: skip


async def read(answer: Answer) -> bytes:
    return b"".join([piece async for piece in answer.body])
