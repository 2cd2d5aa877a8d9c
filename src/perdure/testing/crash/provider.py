"""A model provider that writes down when it was asked what."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from aiohttp import web

SECRET = "Bearer word"  # what its other page is read with
REFUSED, BROKEN = "refuse this", "break off"  # in the last message: what it does instead of answering
WORD_S = 0.01  # between the pieces of a stream


@dataclass
class Hold:
    """Somebody is held where he comes by: the first time."""

    reached: asyncio.Event = field(default_factory=asyncio.Event)
    free: asyncio.Event = field(default_factory=asyncio.Event)

    async def here(self) -> None:
        self.reached.set()
        await self.free.wait()


@dataclass
class CountingProvider:
    """OpenAI-compatible, on a loopback port: ``url``. ``asked``: moment and last message of each request."""

    asked: list[tuple[float, str]] = field(default_factory=list)
    url: str = ""
    holds: dict[str, Hold] = field(default_factory=dict)  # by last message: its answer waits
    _runner: web.AppRunner | None = None

    async def open(self) -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_post("/v1/page", self._page)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}/v1"

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _page(self, request: web.Request) -> web.Response:
        return web.json_response({}, status=200 if request.headers.get("authorization") == SECRET else 401)

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        said = str(body["messages"][-1]["content"])
        self.asked.append((time.time(), said))
        if said in self.holds:
            await self.holds.pop(said).here()
        if REFUSED in said:
            return web.json_response({"error": {"message": "no", "type": "invalid_request_error"}}, status=400)
        text = f"answer to {said}"
        if not body.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            return web.json_response({"id": "1", "object": "chat.completion", "model": "tiny", "choices": [choice]})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for word in text.split():
            piece = '{"choices": [{"index": 0, "delta": {"content": "' + word + ' "}}]}'
            await response.write(b"data: " + piece.encode() + b"\n\n")
            await asyncio.sleep(WORD_S)
            if BROKEN in said:
                assert request.transport is not None
                request.transport.abort()
                return response
        await response.write(b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n')
        await response.write(b"data: [DONE]\n\n")
        return response
