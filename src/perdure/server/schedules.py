"""The part of the server's API that has schedules.

==========================================  =====================================================================
POST   /v1/schedules                        ``{"name", "request": StartRequest, "cron" | "every_s", "zone"?,
                                            "jitter_s"?, "catch_up"?: "none" | "last" | "all", "catch_up_max"?,
                                            "paused"?}`` -> 201, the schedule as below
GET    /v1/schedules                        ``{"schedules": [...]}`` by name
GET    /v1/schedules/{name}                 its fields, ``done`` (the last moment), ``last_run``, ``error``, and
                                            ``next``: when it is due, five times
POST   /v1/schedules/{name}/pause, /resume  {} -> the schedule
POST   /v1/schedules/{name}/run             {} -> 201 ``RunInfo``: a run of it now, beside what is due
DELETE /v1/schedules/{name}                 its runs go on
==========================================  =====================================================================
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec
from aiohttp import web

from perdure.model import Frozen
from perdure.runs.engine import Engine
from perdure.runs.record import StartRequest
from perdure.runs.schedules import Schedule
from perdure.server.bodies import answer, body


class Create(Frozen, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    request: StartRequest
    cron: str = ""
    zone: str = "UTC"
    every_s: float | None = None
    jitter_s: float = 0.0
    catch_up: Literal["none", "last", "all"] = "last"
    catch_up_max: int = 10
    paused: bool = False


class SchedulesApi:
    """Handlers."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._schedules = engine.schedules

    def routes(self) -> Iterable[web.RouteDef]:
        one = "/v1/schedules/{name}"
        return [
            web.post("/v1/schedules", self._create),
            web.get("/v1/schedules", self._list),
            web.get(one, self._get),
            web.post(one + "/pause", self._pause),
            web.post(one + "/resume", self._resume),
            web.post(one + "/run", self._run),
            web.delete(one, self._remove),
        ]

    async def _create(self, request: web.Request) -> web.Response:
        wanted = msgspec.structs.asdict(await body(request, Create))
        return answer(await self._schedules.create(Schedule(**wanted)), 201)

    async def _list(self, request: web.Request) -> web.Response:
        return answer({"schedules": await self._schedules.all()})

    async def _get(self, request: web.Request) -> web.Response:
        return answer(await self._schedules.show(request.match_info["name"]))

    async def _pause(self, request: web.Request) -> web.Response:
        return answer(await self._schedules.pause(request.match_info["name"], True))

    async def _resume(self, request: web.Request) -> web.Response:
        return answer(await self._schedules.pause(request.match_info["name"], False))

    async def _run(self, request: web.Request) -> web.Response:
        run_id = await self._schedules.run(request.match_info["name"])
        return answer(await self._engine.info(run_id), 201)

    async def _remove(self, request: web.Request) -> web.Response:
        await self._schedules.remove(request.match_info["name"])
        return answer({})
