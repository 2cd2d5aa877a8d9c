"""The part of the server's API that goes back in time (docs/time-travel.md).

==========================================  =====================================================================
POST /v1/runs/{id}/fork                     ``{"at"?: SEQ, "count"?: N, "name"?, "key"?}`` -> 201 ``{"runs": [RunInfo,
                                            ...]}`` (200 and the older runs when ``key`` was used before)
POST /v1/runs/{id}/rewind                   ``{"to": SEQ, "key"?}`` -> ``RunInfo``; with the same ``key`` once
GET  /v1/runs/{id}/tree                     the run with its branches and forks, and theirs
GET  /v1/tree                               ``{"trees": [...]}``, of every run that is no fork
GET  /v1/runs/{id}/file                     ``?path=PATH``: bytes of a file that its sandbox changed, 1 MiB at most
GET  /v1/runs/{id}/changes                  what the files of its sandbox differ in from its image
GET  /v1/diff                               ``?a=RUN[:BRANCH]&b=RUN[:BRANCH]&files=1``: where two logs part, and what
                                            differs in the files of the runs' sandboxes
==========================================  =====================================================================
"""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import web

from perdure.errors import InvalidValue
from perdure.model import Frozen
from perdure.runs.engine import Engine
from perdure.runs.keys import check_name
from perdure.server.bodies import answer, body

BODY_HINT = "See docs/time-travel.md."


class Fork(Frozen, frozen=True, kw_only=True):
    at: int | None = None
    count: int = 1
    name: str = ""
    key: str | None = None


class Rewind(Frozen, frozen=True, kw_only=True):
    to: int
    key: str | None = None


class Travel:
    """Handlers."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def routes(self) -> Iterable[web.RouteDef]:
        one = "/v1/runs/{ref}"
        return [
            web.post(one + "/fork", self._fork),
            web.post(one + "/rewind", self._rewind),
            web.get(one + "/tree", self._tree),
            web.get(one + "/file", self._file),
            web.get(one + "/changes", self._changes),
            web.get("/v1/tree", self._trees),
            web.get("/v1/diff", self._diff),
        ]

    async def _fork(self, request: web.Request) -> web.Response:
        run_id, wanted = await self._run(request), await body(request, Fork, BODY_HINT)
        check_name(wanted.name, "run")
        at, count, name, key = wanted.at, wanted.count, wanted.name, wanted.key
        runs, is_new = await self._engine.fork_once(run_id, at=at, count=count, name=name, key=key)
        return answer({"runs": runs}, 201 if is_new else 200)

    async def _rewind(self, request: web.Request) -> web.Response:
        run_id, wanted = await self._run(request), await body(request, Rewind, BODY_HINT)
        return answer(await self._engine.rewind(run_id, wanted.to, key=wanted.key))

    async def _tree(self, request: web.Request) -> web.Response:
        return answer((await self._engine.trees(await self._run(request)))[0])

    async def _trees(self, request: web.Request) -> web.Response:
        return answer({"trees": await self._engine.trees()})

    async def _file(self, request: web.Request) -> web.Response:
        run_id, path = await self._run(request), request.query.get("path", "")
        if not path.startswith("/"):
            raise InvalidValue(f"not an absolute path: {path!r}")
        return web.Response(body=await self._engine.file(run_id, path), content_type="application/octet-stream")

    async def _changes(self, request: web.Request) -> web.Response:
        return answer(await self._engine.changes(await self._run(request)))

    async def _diff(self, request: web.Request) -> web.Response:
        sides = []
        for name in ("a", "b"):
            ref, _, branch = request.query.get(name, "").partition(":")
            if not ref:
                raise InvalidValue(f"no run was named as {name}", hint="?a=RUN&b=RUN")
            sides.append((await self._engine.find(ref), branch))
        return answer(await self._engine.diff(*sides, files=request.query.get("files") == "1"))

    async def _run(self, request: web.Request) -> str:
        return await self._engine.find(request.match_info["ref"])
