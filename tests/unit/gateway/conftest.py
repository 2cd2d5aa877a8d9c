"""A real upstream: an HTTP server whose answers, and faults, each test scripts, in whatever dialect."""

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
from perdure.testing.speeches import chat as chat_completion

Act = Callable[[web.Request], Awaitable[web.StreamResponse]]
RUN = "0123456789ab"


@dataclass
class Provider:
    """Answers with ``acts`` in turn, the last one again and again; keeps what it was asked."""

    acts: list[Act] = field(default_factory=list)
    asked: list[Any] = field(default_factory=list)  # JSON, where it is some
    bodies: list[bytes] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    go: asyncio.Event = field(default_factory=asyncio.Event)
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.bodies.append(body)
        self.paths.append(request.path_qs)
        try:
            self.asked.append(json.loads(body))
        except ValueError:
            self.asked.append(None)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        act = self.acts.pop(0) if len(self.acts) > 1 else self.acts[0]
        return await act(request)

    def says(self, answer: str | dict[str, Any]) -> Act:
        """A chat completion of this text, or this JSON."""

        async def act(request: web.Request) -> web.StreamResponse:
            told = json.dumps(chat_completion(answer) if isinstance(answer, str) else answer).encode()
            response = web.StreamResponse(headers={"content-type": "application/json"})
            await response.prepare(request)
            await response.write(told)
            return response

        return act

    def sends(self, body: bytes, content_type: str | None, *, status: int = 200, **headers: str) -> Act:
        async def act(request: web.Request) -> web.StreamResponse:
            named = {"content-type": content_type} if content_type else {}
            return web.Response(status=status, body=body, headers={**named, **headers})

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
                    break
                await response.write(piece)
            if cut_after is not None:
                assert request.transport is not None
                request.transport.abort()
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
    app = web.Application(client_max_size=1 << 26)
    app.router.add_route("*", "/{path:.*}", made.handle)
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


def providers_of(provider: Provider, **fields: Any) -> Providers:
    remote = RemoteProvider("test", provider.url, key="sk-secret", model="default-model", kind="any", **fields)
    return Providers({"test": remote}, "test")


@pytest.fixture
async def gateway(log: ContextLog, provider: Provider) -> AsyncIterator[Gateway]:
    async with Gateway(log, providers_of(provider), retry=Retry(attempts=3, first_s=0.01, most_s=0.02)) as made:
        yield made


MESSAGES = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "any", "messages": MESSAGES},
    "/v1/responses": {"model": "any", "input": "hi"},
    "/v1/messages": {"model": "any", "max_tokens": 9, "messages": MESSAGES},
}


def ask(path: str, ordinal: int = 1, *, stream: bool = False, body: bytes | None = None, **fields: Any) -> Call:
    """A call of any dialect."""
    told = json.dumps({**BODIES.get(path, {}), **({"stream": True} if stream else {})}).encode()
    made: dict[str, Any] = {"epoch": 1, "method": "POST", "headers": {}, **fields}
    return Call(run_id=RUN, lane="main", ordinal=ordinal, path=path, body=told if body is None else body, **made)


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
