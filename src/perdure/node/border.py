"""The node's border: who asks, whether they may, for whom it is done from then on, and what the audit is told.

It stands before every route, and is the only place that decides. A caller over the Unix socket is a user of this
machine whom the socket's rights let in: root, whoever runs the node, and the group that was given it, who may do
everything. A caller over TCP has a token. A token that is given over the Unix socket counts too: it takes rights away.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import struct
import time
from collections.abc import Awaitable, Callable

from aiohttp import web

from perdure.errors import NoRights, PerdureError, Unauthorized
from perdure.execution.sandboxes import acting
from perdure.node import access, visit
from perdure.node.access import Access
from perdure.node.answers import SERVER, errors_as_json, failure
from perdure.node.audit import Audit
from perdure.node.tokens import Scope, Tokens
from perdure.node.visit import Caller, Visit

PATIENCE_S = 30.0
REF_MAX = 128  # characters of what a request named, in the audit

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Border:
    """``patience_s``: how long a client may be silent in the middle of a request."""

    def __init__(self, tokens: Tokens, audit: Audit, *, patience_s: float = PATIENCE_S) -> None:
        self._tokens = tokens
        self._audit = audit
        self._patience_s = patience_s
        self._open: dict[str, set[asyncio.BaseTransport]] = {}  # token -> what it has open
        tokens.removed = self._expel

    def guard(self, app: web.Application) -> None:
        """Put it before every route of the application, also those that are added later."""
        app.middlewares.append(self._middleware)
        app.on_response_prepare.append(self._answering)

    @web.middleware
    async def _middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        resource = request.match_info.route.resource
        route = resource.canonical if resource is not None else ""
        facts = {
            "request": secrets.token_hex(4),
            "source": _source(request),
            "method": request.method[:16],
            "route": route or request.path[:REF_MAX],
            "ref": _ref(request),
        }
        try:
            caller = self._caller(request)
        except PerdureError as error:
            self._audit.write_stranger(phase="done", status=error.http_status, code=error.code, **facts)
            return failure(error)
        rule = access.rule(request.method, route)
        for_whom = acting.Acting(
            owner=caller.token if caller.scope is Scope.OWN else None, is_trusted=caller.scope is Scope.ALL
        )
        here = Visit(caller=caller, acting=for_whom, rule=rule, patience_s=self._patience_s, facts=facts)
        here.end = lambda status, code: self._end(here, status, code)
        visit.begin(here)
        acting.begin(for_whom)
        return await self._served(request, handler, here, is_known=bool(route))

    async def _served(
        self, request: web.Request, handler: Handler, here: Visit, *, is_known: bool
    ) -> web.StreamResponse:
        transport = request.transport
        try:
            if is_known and here.rule.access not in access.MAY[here.caller.scope]:
                raise NoRights(
                    f"a token of scope {here.caller.scope} may not do this ({request.method} {request.path})",
                    hint="It needs one of scope all.",
                )
            visit.check_length(request, here.rule.body_bytes)
        except PerdureError as error:
            here.end(error.http_status, error.code)
            return failure(error)
        ending = self._hold(here.caller, transport)
        try:
            response: web.StreamResponse = await errors_as_json(request, handler)
        except BaseException:
            here.end(499, "")  # the node ends, or the connection broke in the middle of an answer
            raise
        finally:
            if ending is not None:
                ending.cancel()
            if transport is not None and here.caller.token:
                self._open.get(here.caller.token, set()).discard(transport)
        here.end(response.status, str(getattr(response, "error_code", "")))
        return response

    def _hold(self, caller: Caller, transport: asyncio.BaseTransport | None) -> asyncio.TimerHandle | None:
        """What a token has open ends with the token."""
        if not caller.token or transport is None:
            return None
        self._open.setdefault(caller.token, set()).add(transport)
        if caller.expires is None:
            return None
        delay_s = min(max(0.0, caller.expires - time.time()), 30 * 86400.0)
        return asyncio.get_running_loop().call_later(delay_s, self._expire, caller, transport)

    def _expire(self, caller: Caller, transport: asyncio.BaseTransport) -> None:
        if caller.expires is not None and time.time() >= caller.expires:
            _abort(transport)

    def _expel(self, token: str) -> None:
        mine = visit.current()
        own = mine.caller.token if mine is not None else ""
        for transport in self._open.pop(token, set()) if token != own else ():
            _abort(transport)

    # -- who it is ----------------------------------------------------------------------------------------------------
    def _caller(self, request: web.Request) -> Caller:
        """Raises Unauthorized."""
        transport = request.transport
        if transport is None:
            raise Unauthorized("the connection has ended")
        link = transport.get_extra_info("socket")
        is_local = link is not None and link.family == socket.AF_UNIX
        if not is_local and transport.get_extra_info("ssl_object") is None:
            raise Unauthorized("this API is not for plain connections", hint="Use TLS.")
        uid = pid = None
        if is_local:
            pid, uid, _ = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))  # unix(7)
        given = request.headers.getall("Authorization", [])
        source = _source(request)
        if is_local and not given:
            return Caller(source=source, scope=Scope.ALL, uid=uid, pid=pid)
        if len(given) != 1:
            raise Unauthorized(
                "a token is needed" if not given else "more than one Authorization header",
                hint="FCRUN_TOKEN or FCRUN_TOKEN_FILE gives fcrun one, which `fcrun token create` on the node makes.",
            )
        token = self._tokens.authenticate(given[0])
        return Caller(
            source=source, scope=token.scope, uid=uid, pid=pid, token=token.id, name=token.name, expires=token.expires
        )

    def refused_bytes(self, source: str, status: int) -> None:
        """A connection sent what is no HTTP."""
        self._audit.write_stranger(
            request=secrets.token_hex(4), phase="done", source=source, status=status, code="invalid-value"
        )

    # -- the audit ----------------------------------------------------------------------------------------------------
    def _end(self, here: Visit, status: int, code: str) -> None:
        here.end = lambda status, code: None  # once
        refused = status in (401, 403) or (status >= 400 and bool(here.caller.token))
        if refused or here.rule.access in access.AUDITED:
            self._write(here, "ended" if here.facts.pop("begun", False) else "done", status, code)

    def _write(self, here: Visit, phase: str, status: int, code: str) -> None:
        facts = {name: value for name, value in here.facts.items() if name != "begun"}
        sandboxes = [*here.acting.touched]
        self._audit.write(phase=phase, who=here.caller.told(), sandboxes=sandboxes, status=status, code=code, **facts)

    async def _answering(self, request: web.Request, response: web.StreamResponse) -> None:
        """An answer that goes on while the request is done: it is written down before its first byte."""
        response.headers["Server"] = SERVER
        here = visit.current()
        if here is None or isinstance(response, web.Response) or "begun" in here.facts:
            return
        if here.rule.access in (Access.USE, Access.RULE):
            here.facts["begun"] = True
            self._write(here, "begun", response.status, "")


def _abort(transport: asyncio.BaseTransport) -> None:
    if isinstance(transport, asyncio.WriteTransport):
        transport.abort()
    else:
        transport.close()


def _source(request: web.Request) -> str:
    peer = request.transport.get_extra_info("peername") if request.transport is not None else None
    return f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "unix"


def _ref(request: web.Request) -> str:
    """What the path names beside its route: a sandbox, a snapshot, a template, a token."""
    return ",".join(str(value) for value in request.match_info.values())[:REF_MAX]
