"""Transcripts of the Claude Agent SDK as sessions: ``PerdureSessionStore`` is a ``SessionStore``.

A transcript (of a session, or of one of its subagents) is a session here, a line of it an entry ``line`` whose key is
its ``uuid``: a batch that is sent again is there once. When it was written, and the SDK's own summary of it, are its
``value``, which is replaced together with each append.

Facts of the interface: ``claude_agent_sdk.types.SessionStore``, 0.2.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from claude_agent_sdk import fold_session_summary
from claude_agent_sdk.types import (
    SessionKey,
    SessionListSubkeysKey,
    SessionStore,
    SessionStoreEntry,
    SessionStoreListEntry,
    SessionSummaryEntry,
)

from perdure.client.server import ServerClient
from perdure.errors import LogConflict, NotFound
from perdure.integrations.keys import joined
from perdure.model import SessionInfo

TRIES = 20  # of an append that others were in the way of

Result = TypeVar("Result")


class PerdureSessionStore(SessionStore):
    """Keeps transcripts in the context log of a Perdure server, for ``ClaudeAgentOptions(session_store=...)``.

    client: of the server (None: of this home's). ``Unavailable``: the server is away; the SDK tries again.
    """

    def __init__(self, client: ServerClient | None = None) -> None:
        self._sessions = (client or ServerClient()).sessions

    async def append(self, key: SessionKey, entries: list[SessionStoreEntry]) -> None:
        """Append lines of a transcript. Those with a ``uuid`` that is there already are left out."""
        if entries:
            await asyncio.to_thread(self._append, key, entries)

    def _append(self, key: SessionKey, entries: list[SessionStoreEntry]) -> None:
        name, subpath = _name(key), _subpath(key)
        lines = [_line(cast(Mapping[str, Any], entry)) for entry in entries]
        for tried in range(TRIES):
            session = self._made(key)
            summary = session.value["summary"]
            if not subpath:
                prev = cast(SessionSummaryEntry, {**summary, "mtime": session.value["mtime"]}) if summary else None
                folded = fold_session_summary(prev, key, entries)
                summary = {"session_id": folded["session_id"], "data": folded["data"]}
            value = {**session.value, "mtime": int(time.time() * 1000), "summary": summary}
            try:
                self._sessions.append(name, lines, value=value, expected_version=session.version)
                return
            except NotFound:
                continue  # it was deleted meanwhile
            except LogConflict:
                if tried == TRIES - 1:
                    raise

    def _made(self, key: SessionKey) -> SessionInfo:
        name, subpath = _name(key), _subpath(key)
        try:
            return self._sessions.get(name)
        except NotFound:
            tags = {**_tags(key["project_key"]), "part": "subagent" if subpath else "main"}
            tags["session"] = joined(key["session_id"])
            value = {"session": key["session_id"], "subpath": subpath, "mtime": None, "summary": None}
            return self._sessions.make(name, tags=tags, value=value)

    async def load(self, key: SessionKey) -> list[SessionStoreEntry] | None:
        """All lines of a transcript, in order; None: there is none."""
        return await asyncio.to_thread(self._load, key)

    def _load(self, key: SessionKey) -> list[SessionStoreEntry] | None:
        try:
            lines = [entry.payload for entry in self._sessions.entries(_name(key), kind="line")]
        except NotFound:
            return None
        return lines or None

    async def list_sessions(self, project_key: str) -> list[SessionStoreListEntry]:
        """The sessions of a project, without their subagents'."""
        return [
            {"session_id": found["session"], "mtime": found["mtime"]}
            for found in await self._values({**_tags(project_key), "part": "main"})
        ]

    async def list_session_summaries(self, project_key: str) -> list[SessionSummaryEntry]:
        """What the SDK itself made of each of them, as it went."""
        return [
            {"session_id": found["session"], "mtime": found["mtime"], "data": found["summary"]["data"]}
            for found in await self._values({**_tags(project_key), "part": "main"})
        ]

    async def list_subkeys(self, key: SessionListSubkeysKey) -> list[str]:
        """The transcripts of a session's subagents."""
        return [found["subpath"] for found in await self._values(_of_session(key))]

    async def _values(self, tags: Mapping[str, str]) -> Sequence[dict[str, Any]]:
        """Of those that have lines."""

        def all_of_them() -> list[dict[str, Any]]:
            return [found.value for found in self._sessions.all(tags) if found.value["mtime"] is not None]

        return await asyncio.to_thread(all_of_them)

    async def delete(self, key: SessionKey) -> None:
        """Delete a transcript; that of a session with all its subagents', which go first."""
        names = [_name(key)]
        if not _subpath(key):
            project, session = key["project_key"], key["session_id"]
            of_session: SessionListSubkeysKey = {"project_key": project, "session_id": session}
            for found in await self._values(_of_session(of_session)):
                names.insert(0, _name({"project_key": project, "session_id": session, "subpath": found["subpath"]}))
        for name in names:
            await asyncio.to_thread(_if_there, self._sessions.delete, name)


def _if_there(delete: Callable[[str], None], name: str) -> None:
    try:
        delete(name)
    except NotFound:
        pass


def _line(entry: Mapping[str, Any]) -> dict[str, Any]:
    uuid = entry.get("uuid")
    if isinstance(uuid, str) and uuid:
        return {"kind": "line", "payload": entry, "key": joined("uuid", uuid), "once": True}
    return {"kind": "line", "payload": entry}


def _subpath(key: SessionKey) -> str:
    return cast(Mapping[str, str], key).get("subpath") or ""


def _name(key: SessionKey) -> str:
    return joined("claude", key["project_key"], key["session_id"], _subpath(key))


def _tags(project: str) -> dict[str, str]:
    return {"framework": "claude", "project": joined(project)}


def _of_session(key: SessionListSubkeysKey) -> dict[str, str]:
    return {**_tags(key["project_key"]), "session": joined(key["session_id"]), "part": "subagent"}
