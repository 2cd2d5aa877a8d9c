"""The server's HTTP API, on ``home.socket("perdured")`` and a loopback TCP port.

``run/server.json`` has the port's url and its token. On TCP every request carries ``Authorization: Bearer TOKEN``; on
the socket (mode 0600) the file's rights decide. Bodies are JSON. Errors: ``{"error": {"code", "message", "hint",
"details"}}`` with the error's HTTP status. A run is named by its id, a unique prefix of it, or its name.

==========================================  =====================================================================
POST /v1/runs                               start: ``StartRequest`` -> 201 ``RunInfo`` (200 and the older run when
                                            ``key`` was used before)
GET  /v1/runs                               ``{"runs": [RunInfo, ...]}``, newest first; ``?state=running,waiting``,
                                            ``&tag=NAME=VALUE`` (all of several)
GET  /v1/runs/{id}                          ``RunInfo``; ``?wait_s=N``: answers when the run has ended, or after N s
GET  /v1/status                             ``{"pid", "url", "version", "home", "database", "started", "providers",
                                            "runs": {STATE: n}, "servers": n, "keep_days", "node"}``; with "error" in
                                            place of runs and servers while the database does not answer
GET  /v1/servers                            ``{"servers": [{"server", "lease", "url", "fingerprint", "pid",
                                            "host", "home", "node", "version", "runs",
                                            "heartbeat_age_s"}, ...]}``: all on this database
GET  /v1/budgets                            ``{"budgets": [JointSpent, ...]}``: what all runs of some agents may spend
                                            together, as this server's settings have it, and have: ``{"name", "per",
                                            "budget", "spent", "ends"}``
…                                           what is told to runs: ``server.acts``; their logs: ``server.entries``,
                                            ``server.logs``; output: ``server.output``; the past: ``server.travel``;
                                            machines: ``server.calls``; ``server.queues``, ``server.schedules``,
                                            ``server.sessions``, ``server.packs``
==========================================  =====================================================================

``StartRequest``: either ``{"source": PYTHON, "file": NAME.py, "function": NAME}`` or ``{"command": [..]}``, and
``image``, ``input``, ``key``, ``name``, ``memory_mib``, ``vcpus``, ``disk_mib``, ``env``, ``on_divergence``,
``policy`` (``runs.policy``: ``{"idle_grace_s", "think_grace_s", "checkpoint_turns", "checkpoint_s",
"snapshots_kept"}``),
``fittings`` (``runs.fittings``: ``{"cpus", "cwd", "user", "mounts", "networks", "egress"}``).
``key_scope``, ``key_ttl_s``, ``tags``, ``metadata``, ``queue``, ``queue_key``, ``priority``, ``hooks``,
``timeout_s``, ``active_timeout_s``, ``budget`` (``{"tokens", "calls", "usd"}``), ``modules`` (files that the agent
imports from beside its own: base64 by path), ``pack`` (of ``server.packs``).
"""

from __future__ import annotations

import asyncio
import hmac
import os
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from perdure import __version__
from perdure.client.node import NodeClient
from perdure.context.log import ContextLog
from perdure.errors import InvalidValue, NoRights, PerdureError, Unavailable
from perdure.host.paths import Home
from perdure.model import RunState
from perdure.runs.engine import Engine
from perdure.runs.record import StartRequest
from perdure.server.acts import ActsApi
from perdure.server.bodies import answer, body, number
from perdure.server.calls import PATH as CALLS
from perdure.server.calls import CallsApi
from perdure.server.elsewhere import Elsewhere
from perdure.server.entries import EntriesApi
from perdure.server.failures import failure, known
from perdure.server.logs import Logs
from perdure.server.output import OutputApi
from perdure.server.packs import PacksApi
from perdure.server.queues import QueuesApi
from perdure.server.schedules import SchedulesApi
from perdure.server.sessions import SessionsApi
from perdure.server.travel import Travel

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

BODY_MAX = 64 << 20
FIELD_MAX = 512 << 10  # a guest's head (64 KiB at most) is one header of its node's, as JSON
PAGE = 1000
WAIT_MAX_S = 3600.0
DAY_S = 86400.0


class Start(StartRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Api:
    """Routes and handlers; nothing here that is not about HTTP."""

    def __init__(
        self,
        home: Home,
        engine: Engine,
        context: ContextLog,
        elsewhere: Elsewhere | None = None,
        *,
        providers: list[str],
        url: str,
        token: str,
        started: float,
    ) -> None:
        self._home = self.node = home  # ``node``: the home of the node that is used
        self._engine = engine
        self._context = context
        self._elsewhere = elsewhere
        self._token = token
        self._facts = {
            "pid": os.getpid(),
            "url": url,
            "version": __version__,
            "home": str(home.root),
            "database": context.name,
            "started": started,
            "providers": providers,
        }

    def runner(self) -> web.AppRunner:
        """What serves it."""
        app = self.application()
        return web.AppRunner(app, access_log=None, handler_cancellation=True, max_field_size=FIELD_MAX)

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._errors, self._rights, self._owners], client_max_size=BODY_MAX)
        app.add_routes(
            [
                web.get("/v1/status", self._status),
                web.get("/v1/servers", self._servers),
                web.get("/v1/budgets", self._budgets),
                web.post("/v1/runs", self._start),
                web.get("/v1/runs", self._list),
                web.get("/v1/runs/{ref}", self._get),
                *ActsApi(self._engine).routes(),
                *EntriesApi(self._engine, self._context).routes(),
                *CallsApi(self._engine).routes(),
                *Travel(self._engine).routes(),
                *Logs(self._engine, self._context).routes(),
                *OutputApi(self._engine).routes(),
                *QueuesApi(self._engine).routes(),
                *SchedulesApi(self._engine).routes(),
                *SessionsApi(self._context).routes(),
                *PacksApi(self._engine.packs).routes(),
            ]
        )
        return app

    # -- around every request

    @web.middleware
    async def _errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except Exception as error:
            if isinstance(error, ConnectionError) and (request.transport is None or request.transport.is_closing()):
                return failure(Unavailable("whoever asked has gone"))  # which nobody reads
            return failure(known(error))

    @web.middleware
    async def _rights(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """A TCP port has no file rights: there the token decides. Calls bring their run's own token."""
        transport = request.transport
        is_tcp = transport is not None and isinstance(transport.get_extra_info("peername"), tuple)
        if is_tcp and request.path != CALLS:
            given = request.headers.get("Authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self._token.encode()):
                hint = f"Send Authorization: Bearer TOKEN, with the token of {self._home.run / 'server.json'}."
                raise NoRights("this request has no valid token", hint=hint)
        return await handler(request)

    @web.middleware
    async def _owners(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """What a run's owner does is asked there."""
        if self._elsewhere is None or not self._elsewhere.is_for_owner(request):
            return await handler(request)
        return await self._elsewhere.answer(await self._run(request), request, handler)

    # -- runs

    async def _servers(self, request: web.Request) -> web.Response:
        return answer({"servers": await self._engine.servers() or [{**self._facts, "runs": self._engine.held}]})

    async def _budgets(self, request: web.Request) -> web.Response:
        return answer({"budgets": await self._engine.joint_budgets.all()})

    async def _status(self, request: web.Request) -> web.Response:
        def ask_node() -> dict[str, Any]:
            try:
                return NodeClient(self.node).system(timeout_s=2.0)
            except PerdureError as error:
                return {"error": error.to_json()}

        node = await asyncio.to_thread(ask_node)
        try:
            servers = len(await self._engine.servers()) or 1
            kept: dict[str, Any] = {"runs": await self._engine.states(), "servers": servers}
        except PerdureError as error:  # the database does not answer: this server does, and can be ended
            kept = {"error": error.to_json()}
        retention = self._engine.retention
        days = None if retention is None else retention.keep_s / DAY_S
        return answer({**self._facts, **kept, "keep_days": days, "node": node})

    async def _start(self, request: web.Request) -> web.Response:
        info, is_new = await self._engine.start(await body(request, Start))
        return answer(info, 201 if is_new else 200)

    async def _list(self, request: web.Request) -> web.Response:
        states = [state for state in request.query.get("state", "").split(",") if state]
        for state in states:
            if state not in set(RunState):
                raise InvalidValue(f"no such state: {state!r}", hint="States are " + ", ".join(RunState) + ".")
        tags = dict(text.partition("=")[::2] for text in request.query.getall("tag", []))
        return answer({"runs": await self._engine.runs(states, number(request, "limit", PAGE), tags)})

    async def _get(self, request: web.Request) -> web.Response:
        run_id = await self._run(request)
        wait_s = request.query.get("wait_s")
        if wait_s is None:
            return answer(await self._engine.info(run_id))
        try:
            timeout_s = min(max(float(wait_s), 0.0), WAIT_MAX_S)
        except ValueError:
            raise InvalidValue(f"wait_s is {wait_s!r}: not a number of seconds") from None
        return answer(await self._engine.ended(run_id, timeout_s))

    async def _run(self, request: web.Request) -> str:
        return await self._engine.find(request.match_info["ref"])
