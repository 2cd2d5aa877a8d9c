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
GET  /v1/runs/{id}/entries                  NDJSON of ``Entry``; ``?after=SEQ&limit=N&branch=B&follow=1&compact=1``:
                                            ``follow`` ends after the entry that ends the run,
                                            with an empty line every 5 s; ``compact`` leaves
                                            large values as references. ``&kind=step.intent`` or a
                                            beginning (``step.``); ``&key=LANE/N`` or a lane (``LANE/``)
GET  /v1/runs/{id}/branches                 ``{"branches": [{"branch", "parent", "fork_seq", "seq"}, ...]}``
POST /v1/runs/{id}/signal                   ``{"name", "value", "id"?}`` -> ``RunInfo``; the same id is taken once
POST /v1/runs/{id}/approve                  ``{"wait_id"?, "approved", "comment"?, "by"?, "values"?}`` ->
                                            ``{"wait": {...}}``; 409 ``conflict`` when not waiting, expired, or
                                            answered already (details: by, at)
POST /v1/runs/{id}/checkpoint               ``{"keep"?}`` -> ``SnapshotInfo``, once it is durable; of a run that
                                            sleeps the one that it sleeps in. keep: not given up for newer ones
POST /v1/runs/{id}/cancel                   ``{"reason"?, "clean_up_s"?, "force"?}`` -> ``RunInfo``: its program hears,
                                            and ends after it has cleaned up, or ``clean_up_s``; ``force``: at once
POST /v1/runs/{id}/tags                     ``{"tags": {NAME: VALUE or null}, "metadata"?}`` -> ``RunInfo``
POST /v1/runs/{id}/verify                   recompute the hash chain: ``{"entries", "branches", "blobs"}``
GET  /v1/status                             ``{"pid", "url", "version", "home", "database", "started", "providers",
                                            "runs": {STATE: n}, "servers": n, "node"}``; with "error" in place of
                                            runs and servers while the database does not answer
GET  /v1/servers                            ``{"servers": [{"server", "generation", "url", "pid", "host", "home",
                                            "version", "runs", "heartbeat_age_s"}, ...]}``: all on this database
GET  /v1/blobs/{digest}                     bytes
…                                           the past: ``server.travel``; output: ``server.output``
POST /v1/calls                              from a node (docs/design/0001-contracts.md, 6); its own token
==========================================  =====================================================================

``StartRequest``: either ``{"source": PYTHON, "file": NAME.py, "function": NAME}`` or ``{"command": [..]}``, and
``image``, ``input``, ``key``, ``name``, ``memory_mib``, ``vcpus``, ``disk_mib``, ``env``, ``on_divergence``,
``policy`` (``runs.policy``: ``{"idle_grace_s", "think_grace_s", "checkpoint_turns", "checkpoint_s",
"snapshots_kept"}``),
``fittings`` (``runs.fittings``: ``{"cpus", "cwd", "user", "mounts", "networks", "egress"}``).
``key_scope``, ``key_ttl_s``, ``tags``, ``metadata``, ``queue``, ``queue_key``, ``priority``, ``hooks``,
``timeout_s``, ``active_timeout_s``.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from perdure import __version__
from perdure.client.node import NodeClient
from perdure.context.log import ContextLog
from perdure.errors import (
    InvalidValue,
    LogConflict,
    NoRights,
    NoSpace,
    NotFound,
    PerdureError,
    Unavailable,
    Unsupported,
)
from perdure.host.paths import Home
from perdure.model import Call, Frozen, RunState
from perdure.runs.asking import LONGEST_S
from perdure.runs.calls import PREFIX as CALLS
from perdure.runs.checkpoints import Checkpoint
from perdure.runs.engine import Engine
from perdure.runs.record import StartRequest
from perdure.server.bodies import kept_alive, number
from perdure.server.elsewhere import Elsewhere
from perdure.server.logs import Logs
from perdure.server.output import OutputApi
from perdure.server.queues import QueuesApi
from perdure.server.schedules import SchedulesApi
from perdure.server.travel import Travel

log = logging.getLogger(__name__)
Wanted = TypeVar("Wanted")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

NDJSON = "application/x-ndjson"
BODY_MAX = 64 << 20
PAGE = 1000
WAIT_MAX_S = 3600.0


class Signal(Frozen, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    value: Any = None
    id: str | None = None


class Start(StartRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Approval(Frozen, frozen=True, kw_only=True, forbid_unknown_fields=True):
    approved: bool
    wait_id: str | None = None
    comment: str = ""
    by: str = ""
    values: dict[str, Any] = msgspec.field(default_factory=dict)


class Tags(Frozen, frozen=True, kw_only=True, forbid_unknown_fields=True):
    tags: dict[str, str | None] = msgspec.field(default_factory=dict)
    metadata: Any = msgspec.UNSET


class Cancel(Frozen, frozen=True, kw_only=True, forbid_unknown_fields=True):
    reason: str = ""
    clean_up_s: float | None = None  # the usual time
    force: bool = False


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
        self._home = home
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

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._errors, self._rights, self._owners], client_max_size=BODY_MAX)
        one = "/v1/runs/{ref}"
        app.add_routes(
            [
                web.get("/v1/status", self._status),
                web.get("/v1/servers", self._servers),
                web.post("/v1/runs", self._start),
                web.get("/v1/runs", self._list),
                web.get(one, self._get),
                web.get(one + "/entries", self._entries),
                web.get(one + "/branches", self._branches),
                web.post(one + "/signal", self._signal),
                web.post(one + "/approve", self._approve),
                web.post(one + "/checkpoint", self._checkpoint),
                web.post(one + "/cancel", self._cancel),
                web.post(one + "/tags", self._tags),
                web.post(one + "/verify", self._verify),
                web.get("/v1/blobs/{digest}", self._blob),
                web.post("/v1/calls", self._call),
                *Travel(self._engine).routes(),
                *Logs(self._engine, self._context).routes(),
                *OutputApi(self._engine).routes(),
                *QueuesApi(self._engine).routes(),
                *SchedulesApi(self._engine).routes(),
            ]
        )
        return app

    # -- around every request

    @web.middleware
    async def _errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except Exception as error:
            return _failure(_known(error))

    @web.middleware
    async def _rights(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """A TCP port has no file rights: there the token decides. Calls bring their run's own token."""
        transport = request.transport
        is_tcp = transport is not None and isinstance(transport.get_extra_info("peername"), tuple)
        if is_tcp and request.path != "/v1/calls":
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
        return _json({"servers": await self._engine.servers() or [{**self._facts, "runs": self._engine.held}]})

    async def _status(self, request: web.Request) -> web.Response:
        def ask_node() -> dict[str, Any]:
            try:
                return NodeClient(self._home).system(timeout_s=2.0)
            except PerdureError as error:
                return {"error": error.to_json()}

        node = await asyncio.to_thread(ask_node)
        try:
            servers = len(await self._engine.servers()) or 1
            kept: dict[str, Any] = {"runs": await self._engine.states(), "servers": servers}
        except PerdureError as error:  # the database does not answer: this server does, and can be ended
            kept = {"error": error.to_json()}
        return _json({**self._facts, **kept, "node": node})

    async def _start(self, request: web.Request) -> web.Response:
        info, is_new = await self._engine.start(await _body(request, Start))
        return _json(info, 201 if is_new else 200)

    async def _list(self, request: web.Request) -> web.Response:
        states = [state for state in request.query.get("state", "").split(",") if state]
        for state in states:
            if state not in set(RunState):
                raise InvalidValue(f"no such state: {state!r}", hint="States are " + ", ".join(RunState) + ".")
        tags = dict(text.partition("=")[::2] for text in request.query.getall("tag", []))
        return _json({"runs": await self._engine.runs(states, number(request, "limit", PAGE), tags)})

    async def _get(self, request: web.Request) -> web.Response:
        run_id = await self._run(request)
        wait_s = request.query.get("wait_s")
        if wait_s is None:
            return _json(await self._engine.info(run_id))
        try:
            timeout_s = min(max(float(wait_s), 0.0), WAIT_MAX_S)
        except ValueError:
            raise InvalidValue(f"wait_s is {wait_s!r}: not a number of seconds") from None
        return _json(await self._engine.ended(run_id, timeout_s))

    async def _entries(self, request: web.Request) -> web.StreamResponse:
        run_id = await self._run(request)
        after, branch = number(request, "after", 0), number(request, "branch", 0) or None
        left, expand = number(request, "limit", 0) or None, request.query.get("compact") != "1"
        kind, key = request.query.get("kind"), request.query.get("key")
        if branch is not None:
            await self._context.lineage(run_id, branch)  # NotFound: there is none
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
            await response.write(msgspec.json.encode({"error": _known(error).to_json()}) + b"\n")
        await response.write_eof()
        return response

    async def _branches(self, request: web.Request) -> web.Response:
        return _json({"branches": await self._context.branches(await self._run(request))})

    async def _signal(self, request: web.Request) -> web.Response:
        run_id, signal = await self._run(request), await _body(request, Signal)
        if not signal.name:
            raise InvalidValue("the signal has no name")
        await self._engine.signal(run_id, signal.name, signal.value, signal.id)
        return _json(await self._engine.info(run_id))

    async def _approve(self, request: web.Request) -> web.Response:
        run_id, given = await self._run(request), await _body(request, Approval)
        wait = await self._engine.approve(
            run_id,
            given.wait_id,
            approved=given.approved,
            comment=given.comment,
            by=given.by,
            values=given.values,
        )
        return _json({"wait": wait})

    async def _checkpoint(self, request: web.Request) -> web.Response:
        run_id, wanted = await self._run(request), await _body(request, Checkpoint)
        return _json(await self._engine.checkpoint(run_id, keep=wanted.keep))

    async def _cancel(self, request: web.Request) -> web.Response:
        run_id = await self._run(request)
        given = await _body(request, Cancel)
        if given.clean_up_s is not None and not 0 <= given.clean_up_s <= LONGEST_S:
            raise InvalidValue(f"clean_up_s is {given.clean_up_s:g}", hint="It is a number of seconds from 0 on.")
        await self._engine.cancel(run_id, given.reason, clean_up_s=0.0 if given.force else given.clean_up_s)
        return _json(await self._engine.info(run_id))

    async def _tags(self, request: web.Request) -> web.Response:
        run_id, given = await self._run(request), await _body(request, Tags)
        new = {} if given.metadata is msgspec.UNSET else {"metadata": given.metadata}
        return _json(await self._engine.tag(run_id, given.tags, **new))

    async def _verify(self, request: web.Request) -> web.Response:
        return _json(await self._context.verify(await self._run(request)))

    async def _blob(self, request: web.Request) -> web.Response:
        content = await self._context.get_blob(request.match_info["digest"])
        return web.Response(body=content, content_type="application/octet-stream")

    async def _run(self, request: web.Request) -> str:
        return await self._engine.find(request.match_info["ref"])

    # -- machines

    async def _call(self, request: web.Request) -> web.StreamResponse:
        call, token = await _read_call(request)
        try:
            answer = await self._engine.answer(call, token)
        except (Unavailable, LogConflict, NoSpace) as error:
            # Not the guest's concern: it is asked again until it can be answered, and nothing is lost.
            log.info("call %s of run %s again: %s", call.key, call.run_id, error.message)
            again = _failure(Unavailable(error.message, hint=error.hint))
            again.headers["Perdure-Retry"] = "1"
            return again
        if call.path.startswith(CALLS):  # no model's: it is there as a whole
            whole = b"".join([piece async for piece in answer.body])
            return web.Response(status=answer.status, headers=_end_to_end(answer.headers), body=whole)
        response = web.StreamResponse(status=answer.status, headers=_end_to_end(answer.headers))
        async with aclosing(answer.body) as body:  # type: ignore[type-var]
            await response.prepare(request)
            async for piece in body:
                await response.write(piece)
        await response.write_eof()
        return response


async def _read_call(request: web.Request) -> tuple[Call, str]:
    """A node's request as a call, and its token (docs/design/0001-contracts.md, 6)."""
    given = request.headers
    try:
        headers = msgspec.json.decode(given.get("Perdure-Headers", "{}"), type=dict[str, str])
        call = Call(
            run_id=given["Perdure-Run"],
            epoch=int(given["Perdure-Epoch"]),
            lane=given["Perdure-Lane"],
            ordinal=int(given["Perdure-Ordinal"]),
            method=given["Perdure-Method"],
            path=given["Perdure-Path"],
            headers={name.lower(): value for name, value in headers.items()},
            body=await request.read(),
            offset=int(given.get("Perdure-Offset", "0")),
        )
        return call, given["Perdure-Token"]
    except (KeyError, ValueError, msgspec.MsgspecError) as error:
        raise InvalidValue(f"this is not a call: {error!r}", hint="Only nodes ask here.") from error


def _end_to_end(headers: Any) -> dict[str, str]:
    """Without the length: the body begins at the offset, and is framed anew."""
    skipped = ("content-length", "transfer-encoding", "connection")
    return {name: value for name, value in headers.items() if name.lower() not in skipped}


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


def _failure(error: PerdureError) -> web.Response:
    status = 410 if error.code == "stale-epoch" else error.http_status
    return _json({"error": error.to_json()}, status)


def _known(error: Exception) -> PerdureError:
    """The error as one of the tree; what is not expected is logged with its trace."""
    if isinstance(error, PerdureError):
        return error
    if isinstance(error, web.HTTPNotFound):
        return NotFound("no such path in the server's API")
    if isinstance(error, web.HTTPMethodNotAllowed):
        return Unsupported(f"this path does not know {error.method}")
    if isinstance(error, web.HTTPException):
        return InvalidValue(error.reason)
    log.error("internal error", exc_info=error)
    return PerdureError(f"internal error: {error!r}", hint="The server's log has the trace.")


def is_like(found: str | None, wanted: str | None, end: str) -> bool:
    """As the log's ``read`` has it: the same, or one that begins so where ``wanted`` has that end."""
    if wanted is None or found == wanted:
        return True
    return wanted.endswith(end) and found is not None and found.startswith(wanted)


async def _body(request: web.Request, kind: type[Wanted]) -> Wanted:
    """The request's JSON as a value of ``kind``. InvalidValue names the field."""
    data = await request.read()
    try:
        return msgspec.json.decode(data or b"{}", type=kind)
    except RecursionError:
        raise InvalidValue(f"the body of {request.method} {request.path} is nested too deeply") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidValue(f"the body of {request.method} {request.path}: {error}") from error
