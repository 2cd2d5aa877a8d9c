"""The part of the server's API that moves whole logs, and drops them.

==========================================  =====================================================================
GET  /v1/runs/{id}/export                   NDJSON: the log as a file (docs/formats/log-file.md)
POST /v1/import                             such a file -> 201 ``RunInfo``; a run that had ended, under its own id; or
                                            the entries of one that was pruned here
POST /v1/runs/{id}/prune                    drop the log of a run that has ended: ``{}``
POST /v1/prune                              ``{"older_than_s", "dry_run"?}`` -> ``{"runs": [ID, ...], "swept": {"blobs",
                                            "stored_bytes", "next_blobs"} or null}``: of all runs that ended before
                                            that; and blobs that nothing refers to any more
==========================================  =====================================================================
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing

import msgspec
from aiohttp import web

from perdure.context.log import ContextLog
from perdure.errors import PerdureError, TooLarge
from perdure.formats.logfile import LINE_MAX_BYTES
from perdure.model import Frozen
from perdure.runs import retention
from perdure.runs.engine import Engine
from perdure.server.bodies import NDJSON, answer, body

CHUNK_BYTES = 1 << 16


class Prune(Frozen, frozen=True, kw_only=True, forbid_unknown_fields=True):
    older_than_s: float
    dry_run: bool = False


class Logs:
    """Handlers."""

    def __init__(self, engine: Engine, context: ContextLog) -> None:
        self._engine = engine
        self._context = context

    def routes(self) -> Iterable[web.RouteDef]:
        return [
            web.get("/v1/runs/{ref}/export", self._export),
            web.post("/v1/runs/{ref}/prune", self._prune),
            web.post("/v1/import", self._import),
            web.post("/v1/prune", self._prune_older),
        ]

    async def _export(self, request: web.Request) -> web.StreamResponse:
        run_id = await self._engine.find(request.match_info["ref"])
        async with aclosing(self._context.export(run_id)) as lines:
            first = await anext(lines)  # what is refused is refused with a status
            response = web.StreamResponse(headers={"Content-Type": NDJSON})
            await response.prepare(request)
            try:
                kept = bytearray(first)
                async for line in lines:
                    kept += line
                    if len(kept) >= CHUNK_BYTES:
                        await response.write(bytes(kept))
                        kept.clear()
                await response.write(bytes(kept))
            except ConnectionError:
                return response  # the reader left
            except PerdureError as error:  # without its last line nobody takes the file for a whole one
                await response.write(bytes(kept) + msgspec.json.encode({"error": error.to_json()}) + b"\n")
        await response.write_eof()
        return response

    async def _import(self, request: web.Request) -> web.Response:
        head = await self._context.take_up(_lines(request), retention.taken_up)
        return answer(await self._engine.info(head.run_id), 201)

    async def _prune(self, request: web.Request) -> web.Response:
        await retention.prune(self._context, await self._engine.find(request.match_info["ref"]))
        return answer({})

    async def _prune_older(self, request: web.Request) -> web.Response:
        wanted = await body(request, Prune, '{"older_than_s": 2592000}')
        before = retention.moment(wanted.older_than_s, time.time())
        runs = await retention.prune_older(self._context, before, dry_run=wanted.dry_run)
        swept = None if wanted.dry_run else await self._context.sweep()
        return answer({"runs": runs, "swept": swept})


async def _lines(request: web.Request) -> AsyncIterator[bytes]:
    kept = bytearray()
    async for chunk in request.content.iter_any():
        start = len(kept)
        kept += chunk
        if len(kept) > LINE_MAX_BYTES:
            raise TooLarge(f"a line of the exported log is longer than {LINE_MAX_BYTES >> 20} MiB")
        if (end := kept.rfind(b"\n", start)) >= 0:
            for line in bytes(kept[:end]).split(b"\n"):
                yield line
            del kept[: end + 1]
    if kept:
        yield bytes(kept)
