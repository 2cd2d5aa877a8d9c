"""The part of the server's API that has queues.

==========================================  =====================================================================
POST   /v1/queues                           ``{"name", "concurrency"?, "key_concurrency"?, "rate"?, "period_s"?,
                                            "paused"?}`` -> 201, the queue as below
GET    /v1/queues                           ``{"queues": [...]}`` by name
GET    /v1/queues/{name}                    its fields, ``waiting`` and ``active`` (numbers of runs), ``next``: ids
PATCH  /v1/queues/{name}                    some of the fields; null: no such limit
DELETE /v1/queues/{name}                    409 while runs wait in it
==========================================  =====================================================================
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from aiohttp import web

from perdure.model import Frozen
from perdure.runs.engine import Engine
from perdure.runs.queues import Queue
from perdure.server.bodies import answer, body


class Create(Frozen, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    concurrency: int | None = None
    key_concurrency: int | None = None
    rate: int | None = None
    period_s: float = 1.0
    paused: bool = False


class Change(Frozen, frozen=True, kw_only=True, forbid_unknown_fields=True):
    concurrency: int | msgspec.UnsetType | None = msgspec.UNSET
    key_concurrency: int | msgspec.UnsetType | None = msgspec.UNSET
    rate: int | msgspec.UnsetType | None = msgspec.UNSET
    period_s: float | msgspec.UnsetType = msgspec.UNSET
    paused: bool | msgspec.UnsetType = msgspec.UNSET


class QueuesApi:
    """Handlers."""

    def __init__(self, engine: Engine) -> None:
        self._queues = engine.queues

    def routes(self) -> Iterable[web.RouteDef]:
        one = "/v1/queues/{name}"
        return [
            web.post("/v1/queues", self._create),
            web.get("/v1/queues", self._list),
            web.get(one, self._get),
            web.patch(one, self._change),
            web.delete(one, self._remove),
        ]

    async def _create(self, request: web.Request) -> web.Response:
        wanted = msgspec.structs.asdict(await body(request, Create))
        return answer(await self._queues.create(Queue(**wanted)), 201)

    async def _list(self, request: web.Request) -> web.Response:
        await self._queues.refresh()
        return answer({"queues": self._queues.all()})

    async def _get(self, request: web.Request) -> web.Response:
        await self._queues.refresh()
        return answer(self._queues.show(request.match_info["name"]))

    async def _change(self, request: web.Request) -> web.Response:
        given = msgspec.structs.asdict(await body(request, Change))
        changes = {name: value for name, value in given.items() if value is not msgspec.UNSET}
        return answer(await self._queues.change(request.match_info["name"], changes))

    async def _remove(self, request: web.Request) -> web.Response:
        await self._queues.remove(request.match_info["name"])
        return answer({})
