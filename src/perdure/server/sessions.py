"""The part of the server's API that has sessions: logs that programs write which are no runs.

==========================================  =====================================================================
POST   /v1/sessions                         ``{"name", "tags"?, "value"?}`` -> 201 ``SessionInfo`` (200 and the older
                                            one, as it is, where there is one of this name)
GET    /v1/sessions                         ``{"sessions": [...]}``, oldest first; ``?tag=NAME=VALUE`` (all of several),
                                            ``&limit=N&beyond=ID``
GET    /v1/sessions/{name}                  ``SessionInfo``
DELETE /v1/sessions/{name}
POST   /v1/sessions/{name}/entries          ``{"entries": [{"kind", "key"?, "payload"?, "once"?}, ...], "tags"?,
                                            "expected_seq"?, "value"?, "expected_version"?}`` ->
                                            ``{"session": SessionInfo, "seqs": [...]}``; with tags a
                                            session is made where there is none; 409 ``log-conflict``
GET    /v1/sessions/{name}/entries          ``{"entries": [Entry, ...]}``, one page: ``?after=SEQ&limit=N&kind=K``; or
                                            ``?newest=1&before=SEQ&limit=N&kind=K&key=K``, last first;
                                            ``&compact=1`` leaves large values as references
POST   /v1/sessions/{name}/find             ``{"keys": [...]}`` -> ``{"entries": [...]}``, in order
POST   /v1/sessions/{name}/fork             ``{"name", "at"?, "tags"?, "value"?}`` -> 201 ``SessionInfo``
POST   /v1/sessions/{name}/keep             ``{"seqs": [...], "expected_seq", "value"?}`` -> ``SessionInfo``: only
                                            these entries stay, numbered anew
==========================================  =====================================================================
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from aiohttp import web

from perdure.context.log import ContextLog
from perdure.context.sessions import NewItem
from perdure.errors import InvalidValue
from perdure.model import Entry, Frozen
from perdure.server.bodies import answer, body, number

PAGE = 1000
PAGE_MAX = 10_000


class Make(Frozen, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    tags: dict[str, str] = msgspec.field(default_factory=dict)
    value: Any = None


class Item(Frozen, frozen=True, kw_only=True, forbid_unknown_fields=True):
    kind: str
    key: str | None = None
    payload: Any = None
    once: bool = False


class Write(Frozen, frozen=True, kw_only=True, forbid_unknown_fields=True):
    entries: list[Item] = msgspec.field(default_factory=list)
    tags: dict[str, str] | None = None
    expected_seq: int | None = None
    value: Any = msgspec.UNSET
    expected_version: int | None = None


class Find(Frozen, frozen=True, kw_only=True, forbid_unknown_fields=True):
    keys: list[str]


class Fork(Frozen, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    at: int | None = None
    tags: dict[str, str] | None = None
    value: Any = msgspec.UNSET


class Keep(Frozen, frozen=True, kw_only=True, forbid_unknown_fields=True):
    seqs: list[int]
    expected_seq: int
    value: Any = msgspec.UNSET


class SessionsApi:
    """Handlers."""

    def __init__(self, context: ContextLog) -> None:
        self._context = context

    def routes(self) -> Iterable[web.RouteDef]:
        one = "/v1/sessions/{name}"
        return [
            web.post("/v1/sessions", self._make),
            web.get("/v1/sessions", self._list),
            web.get(one, self._get),
            web.delete(one, self._delete),
            web.post(one + "/entries", self._append),
            web.get(one + "/entries", self._read),
            web.post(one + "/find", self._find),
            web.post(one + "/fork", self._fork),
            web.post(one + "/keep", self._keep),
        ]

    async def _make(self, request: web.Request) -> web.Response:
        asked = await body(request, Make)
        session, is_new = await self._context.sessions.make(asked.name, asked.tags, asked.value)
        return answer(session, 201 if is_new else 200)

    async def _list(self, request: web.Request) -> web.Response:
        tags = dict(text.partition("=")[::2] for text in request.query.getall("tag", []))
        limit, beyond = _limit(request), request.query.get("beyond")
        return answer({"sessions": await self._context.sessions.all(tags, beyond, limit)})

    async def _get(self, request: web.Request) -> web.Response:
        return answer(await self._context.sessions.get(_name(request)))

    async def _delete(self, request: web.Request) -> web.Response:
        await self._context.sessions.delete(_name(request))
        return answer({})

    async def _append(self, request: web.Request) -> web.Response:
        asked = await body(request, Write)
        if any(not item.kind or (item.once and item.key is None) for item in asked.entries):
            raise InvalidValue("an entry has no kind, or is to be there once and has no key")
        session, entries = await self._context.sessions.append(
            _name(request),
            [NewItem(kind=item.kind, key=item.key, payload=item.payload, once=item.once) for item in asked.entries],
            tags=asked.tags,
            expected_seq=asked.expected_seq,
            value=asked.value,
            expected_version=asked.expected_version,
        )
        return answer({"session": session, "seqs": [entry.seq for entry in entries]})

    async def _read(self, request: web.Request) -> web.Response:
        limit, kind, expand = _limit(request), request.query.get("kind"), request.query.get("compact") != "1"
        sessions, name = self._context.sessions, _name(request)
        found: list[Entry]
        if request.query.get("newest") == "1":
            before, key = number(request, "before", 0) or None, request.query.get("key")
            found = await sessions.newest(name, before=before, limit=limit, kind=kind, key=key, expand=expand)
        else:
            found = await sessions.read(name, after=number(request, "after", 0), limit=limit, kind=kind, expand=expand)
        return answer({"entries": found})

    async def _find(self, request: web.Request) -> web.Response:
        asked = await body(request, Find)
        return answer({"entries": await self._context.sessions.find(_name(request), asked.keys)})

    async def _fork(self, request: web.Request) -> web.Response:
        asked = await body(request, Fork)
        sessions = self._context.sessions
        forked = await sessions.fork(_name(request), asked.name, at=asked.at, tags=asked.tags, value=asked.value)
        return answer(forked, 201)

    async def _keep(self, request: web.Request) -> web.Response:
        asked = await body(request, Keep)
        sessions = self._context.sessions
        kept = await sessions.keep(_name(request), asked.seqs, expected_seq=asked.expected_seq, value=asked.value)
        return answer(kept)


def _name(request: web.Request) -> str:
    return request.match_info["name"]


def _limit(request: web.Request) -> int:
    return min(number(request, "limit", PAGE), PAGE_MAX)
