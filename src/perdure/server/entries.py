"""The part of the server's API that has the logs of runs, entry by entry.

==========================================  =====================================================================
GET  /v1/runs/{id}/entries                  NDJSON of ``Entry``; ``?after=SEQ&limit=N&branch=B&follow=1&compact=1``:
                                            ``follow`` ends after the entry that ends the run,
                                            with an empty line every 5 s; ``compact`` leaves
                                            large values as references. ``&kind=step.intent`` or a
                                            beginning (``step.``), refused where no entry has
                                            such a kind; ``&key=LANE/N`` or a lane (``LANE/``)
GET  /v1/runs/{id}/branches                 ``{"branches": [{"branch", "parent", "fork_seq", "seq"}, ...]}``
POST /v1/runs/{id}/verify                   recompute the hash chain: ``{"entries", "branches", "blobs"}``
GET  /v1/blobs/{digest}                     bytes
==========================================  =====================================================================
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import aclosing

import msgspec
from aiohttp import web

from perdure.context import kinds
from perdure.context.log import ContextLog
from perdure.runs.engine import Engine
from perdure.server.bodies import NDJSON, answer, kept_alive, number
from perdure.server.failures import known

PAGE = 1000


class EntriesApi:
    """Handlers."""

    def __init__(self, engine: Engine, context: ContextLog) -> None:
        self._engine = engine
        self._context = context

    def routes(self) -> Iterable[web.RouteDef]:
        one = "/v1/runs/{ref}"
        return [
            web.get(one + "/entries", self._entries),
            web.get(one + "/branches", self._branches),
            web.post(one + "/verify", self._verify),
            web.get("/v1/blobs/{digest}", self._blob),
        ]

    async def _entries(self, request: web.Request) -> web.StreamResponse:
        run_id = await self._run(request)
        after, branch = number(request, "after", 0), number(request, "branch", 0) or None
        left, expand = number(request, "limit", 0) or None, request.query.get("compact") != "1"
        kind, key = request.query.get("kind"), request.query.get("key")
        if branch is not None:
            await self._context.lineage(run_id, branch)  # NotFound: there is none
        if kind and not kinds.is_known(kind):
            theirs = await self._context.read(run_id, branch=branch, limit=1, expand=False, kind=kind)
            if not theirs:  # of another version it may have others
                raise kinds.unknown(kind)
        response = web.StreamResponse(headers={"Content-Type": NDJSON})
        await response.prepare(request)
        try:
            if request.query.get("follow") == "1":
                following = self._engine.follow(run_id, after, expand=expand)
                async with kept_alive(response), aclosing(following) as entries:
                    async for entry in entries:
                        if is_like(entry.kind, kind, ".") and is_like(entry.key, key, "/"):
                            await response.write(msgspec.json.encode(entry) + b"\n")
            else:
                while left is None or left > 0:
                    limit = PAGE if left is None else min(left, PAGE)
                    page = await self._context.read(
                        run_id, branch=branch, after=after, limit=limit, expand=expand, kind=kind, key=key
                    )
                    if not page:
                        break
                    await response.write(b"".join(msgspec.json.encode(entry) + b"\n" for entry in page))
                    after, left = page[-1].seq, None if left is None else left - len(page)
        except ConnectionError:
            return response  # the reader left
        except Exception as error:
            await response.write(msgspec.json.encode({"error": known(error).to_json()}) + b"\n")
        await response.write_eof()
        return response

    async def _branches(self, request: web.Request) -> web.Response:
        return answer({"branches": await self._context.branches(await self._run(request))})

    async def _verify(self, request: web.Request) -> web.Response:
        return answer(await self._context.verify(await self._run(request)))

    async def _blob(self, request: web.Request) -> web.Response:
        content = await self._context.get_blob(request.match_info["digest"])
        return web.Response(body=content, content_type="application/octet-stream")

    async def _run(self, request: web.Request) -> str:
        return await self._engine.find(request.match_info["ref"])


def is_like(found: str | None, wanted: str | None, end: str) -> bool:
    """As the log's ``read`` has it: the same, or one that begins so where ``wanted`` has that end."""
    if wanted is None or found == wanted:
        return True
    return wanted.endswith(end) and found is not None and found.startswith(wanted)
