"""The server's HTTP API of packs: what an agent brings along, made before its run, with its progress.

``POST /v1/packs``: a ``StartRequest`` -> ``{"pack": DIGEST}`` (null: its file is all), to be given as ``pack`` with the
start. A client that accepts NDJSON is told on the way: ``{"progress": [what, done, total]}`` lines, then one
``{"ok": …}`` or ``{"error": …}``. What no run names is gone after some days.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec
from aiohttp import web

from perdure.runs.packs import Packs
from perdure.runs.record import StartRequest
from perdure.server.bodies import NDJSON, answer, body, kept_alive
from perdure.server.failures import known


class Wish(StartRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class PacksApi:
    def __init__(self, packs: Packs) -> None:
        self._packs = packs

    def routes(self) -> Sequence[web.AbstractRouteDef]:
        return [web.post("/v1/packs", self._make)]

    async def _make(self, request: web.Request) -> web.StreamResponse:
        wish = await body(request, Wish)
        wish.check()
        if NDJSON not in request.headers.get("Accept", ""):
            return answer({"pack": await self._packs.of(wish)})
        steps: asyncio.Queue[Any] = asyncio.Queue()
        task = asyncio.create_task(self._packs.of(wish, lambda *step: steps.put_nowait({"progress": step})))
        task.add_done_callback(lambda done: steps.put_nowait(_told(done)))
        response = web.StreamResponse(headers={"Content-Type": NDJSON, "Cache-Control": "no-store"})
        try:
            await response.prepare(request)
            async with kept_alive(response):
                while "progress" in (line := await steps.get()):
                    await response.write(msgspec.json.encode(line) + b"\n")
                await response.write(msgspec.json.encode(line) + b"\n")
        finally:  # whoever asked has gone: nothing needs it
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task
        return response


def _told(task: asyncio.Task[str | None]) -> dict[str, Any]:
    """How it went: as the last line of an answer."""
    if task.cancelled():
        return {"error": {"code": "unavailable", "message": "the server ends", "hint": ""}}
    problem = task.exception()
    if isinstance(problem, Exception):
        return {"error": known(problem).to_json()}
    return {"ok": {"pack": task.result()}}
