"""The part of the server's API that has what runs' programs wrote.

==========================================  =====================================================================
GET  /v1/runs/{id}/output                   what there is of it: text/plain (its tail after the run ended)
GET  …?offset=N&life=L&follow=1             NDJSON of ``OutputPiece``, from byte N of that life on: ``{"life", "offset",
                                            "stream", "at", "data"}`` (data: base64). The next byte's offset is
                                            ``offset`` plus the length of the data: ask on with it, and the life.
                                            Another life, or none: all that there is. ``tail=N``: the last N lines
                                            first; ``follow``: until the run has ended, with an empty line every 5 s
==========================================  =====================================================================
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import aclosing

import msgspec
from aiohttp import web

from perdure.errors import PerdureError
from perdure.runs.engine import Engine
from perdure.server.bodies import NDJSON, kept_alive, number

TAIL_BYTES = 1 << 20
PIECES = ("offset", "life", "follow", "tail")


class OutputApi:
    """Handlers."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def routes(self) -> Iterable[web.RouteDef]:
        return [web.get("/v1/runs/{ref}/output", self._output)]

    async def _output(self, request: web.Request) -> web.StreamResponse:
        run_id = await self._engine.find(request.match_info["ref"])
        if any(name in request.query for name in PIECES):
            return await self._pieces(request, run_id)
        output = await self._engine.output(run_id, number(request, "tail_bytes", TAIL_BYTES))
        return web.Response(body=output, content_type="text/plain", charset="utf-8")

    async def _pieces(self, request: web.Request, run_id: str) -> web.StreamResponse:
        life, offset = request.query.get("life", ""), number(request, "offset", 0)
        tail = number(request, "tail", 0) if "tail" in request.query else None
        live = request.query.get("follow") == "1"
        response = web.StreamResponse(headers={"Content-Type": NDJSON})
        await response.prepare(request)
        try:
            printed = self._engine.printed(run_id, life, offset, tail=tail, live=live)
            async with kept_alive(response), aclosing(printed) as pieces:
                async for piece in pieces:
                    await response.write(msgspec.json.encode(piece) + b"\n")
        except ConnectionError:
            return response  # the reader left
        except PerdureError as error:
            await response.write(msgspec.json.encode({"error": error.to_json()}) + b"\n")
        await response.write_eof()
        return response
