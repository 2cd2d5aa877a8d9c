"""The part of the server's API by which runs are told something.

==========================================  =====================================================================
POST /v1/runs/{id}/signal                   ``{"name", "value", "id"?}`` -> ``Signalled``: ``RunInfo`` with ``outcome``
                                            (taken, kept, duplicate: the same id is taken once) and ``wait_id``
POST /v1/runs/{id}/approve                  ``{"wait_id"?, "approved", "comment"?, "by"?, "values"?}`` ->
                                            ``{"wait": {...}}``; 409 ``conflict`` when not waiting, expired, or
                                            answered already (details: by, at)
POST /v1/runs/{id}/checkpoint               ``{"keep"?}`` -> ``SnapshotInfo``, once it is durable; of a run that
                                            sleeps the one that it sleeps in. keep: not given up for newer ones
POST /v1/runs/{id}/cancel                   ``{"reason"?, "clean_up_s"?, "force"?}`` -> ``RunInfo``: its program hears,
                                            and ends after it has cleaned up, or ``clean_up_s``; ``force``: at once
POST /v1/runs/{id}/tags                     ``{"tags": {NAME: VALUE or null}, "metadata"?}`` -> ``RunInfo``
POST /v1/runs/{id}/budget                   ``{"tokens"?, "calls"?, "usd"?}`` -> ``RunInfo``: from its next call on;
                                            what is left out stays, 0: no limit
==========================================  =====================================================================
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from aiohttp import web

from perdure.errors import InvalidValue
from perdure.model import Budget, Frozen, Signalled
from perdure.runs.asking import LONGEST_S
from perdure.runs.checkpoints import Checkpoint
from perdure.runs.engine import Engine
from perdure.server.bodies import answer, body


class Signal(Frozen, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    value: Any = None
    id: str | None = None


class Approval(Frozen, frozen=True, kw_only=True, forbid_unknown_fields=True):
    approved: bool
    wait_id: str | None = None
    comment: str = ""
    by: str = ""
    values: dict[str, Any] = msgspec.field(default_factory=dict)


class Tags(Frozen, frozen=True, kw_only=True, forbid_unknown_fields=True):
    tags: dict[str, str | None] = msgspec.field(default_factory=dict)
    metadata: Any = msgspec.UNSET


class NewBudget(Budget, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Cancel(Frozen, frozen=True, kw_only=True, forbid_unknown_fields=True):
    reason: str = ""
    clean_up_s: float | None = None  # the usual time
    force: bool = False


class ActsApi:
    """Handlers."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def routes(self) -> Iterable[web.RouteDef]:
        one = "/v1/runs/{ref}"
        return [
            web.post(one + "/signal", self._signal),
            web.post(one + "/approve", self._approve),
            web.post(one + "/checkpoint", self._checkpoint),
            web.post(one + "/cancel", self._cancel),
            web.post(one + "/tags", self._tags),
            web.post(one + "/budget", self._budget),
        ]

    async def _signal(self, request: web.Request) -> web.Response:
        run_id, signal = await self._run(request), await body(request, Signal)
        if not signal.name:
            raise InvalidValue("the signal has no name")
        outcome, wait_id = await self._engine.signal(run_id, signal.name, signal.value, signal.id)
        info = msgspec.structs.asdict(await self._engine.info(run_id))
        return answer(Signalled(**info, outcome=outcome, wait_id=wait_id))

    async def _approve(self, request: web.Request) -> web.Response:
        run_id, given = await self._run(request), await body(request, Approval)
        wait = await self._engine.approve(
            run_id,
            given.wait_id,
            approved=given.approved,
            comment=given.comment,
            by=given.by,
            values=given.values,
        )
        return answer({"wait": wait})

    async def _checkpoint(self, request: web.Request) -> web.Response:
        run_id, wanted = await self._run(request), await body(request, Checkpoint)
        return answer(await self._engine.checkpoint(run_id, keep=wanted.keep))

    async def _cancel(self, request: web.Request) -> web.Response:
        run_id = await self._run(request)
        given = await body(request, Cancel)
        if given.clean_up_s is not None and not 0 <= given.clean_up_s <= LONGEST_S:
            raise InvalidValue(f"clean_up_s is {given.clean_up_s:g}", hint="It is a number of seconds from 0 on.")
        await self._engine.cancel(run_id, given.reason, clean_up_s=0.0 if given.force else given.clean_up_s)
        return answer(await self._engine.info(run_id))

    async def _tags(self, request: web.Request) -> web.Response:
        run_id, given = await self._run(request), await body(request, Tags)
        new = {} if given.metadata is msgspec.UNSET else {"metadata": given.metadata}
        return answer(await self._engine.tag(run_id, given.tags, **new))

    async def _budget(self, request: web.Request) -> web.Response:
        run_id, given = await self._run(request), await body(request, NewBudget)
        return answer(await self._engine.set_budget(run_id, given))

    async def _run(self, request: web.Request) -> str:
        return await self._engine.find(request.match_info["ref"])
