"""A provider on a loopback port whose answers, and faults, each test scripts, in whatever dialect."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from perdure.testing.speeches import chat

Act = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class ScriptedProvider:
    """Answers with ``acts`` in turn, the last one again and again; keeps what it was asked."""

    acts: list[Act] = field(default_factory=list)
    asked: list[Any] = field(default_factory=list)  # JSON, where it is some
    bodies: list[bytes] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    go: asyncio.Event = field(default_factory=asyncio.Event)
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)  # who asked hung up before the end
    url: str = ""
    _runner: web.AppRunner | None = None

    async def open(self) -> None:
        """Listen on a free loopback port: ``url``."""
        app = web.Application(client_max_size=1 << 26)
        app.router.add_route("*", "/{path:.*}", self.handle)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"

    async def close(self) -> None:
        self.go.set()
        if self._runner is not None:
            await self._runner.cleanup()

    def go_on(self) -> None:
        """Whatever is held goes on; what comes later is held anew."""
        self.go.set()
        self.go, self.reached = asyncio.Event(), asyncio.Event()

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
        try:
            return await act(request)
        except asyncio.CancelledError:
            self.left.set()
            raise

    def says(self, answer: str | dict[str, Any]) -> Act:
        """A chat completion of this text, or this JSON."""

        async def act(request: web.Request) -> web.StreamResponse:
            told = json.dumps(chat(answer) if isinstance(answer, str) else answer).encode()
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
