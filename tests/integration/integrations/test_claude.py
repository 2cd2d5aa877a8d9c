"""The Claude Agent SDK's transcripts in a real server's log: the SDK's own conformance suite, and its own readers."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest

pytest.importorskip("claude_agent_sdk", reason="claude-agent-sdk is not installed")

from claude_agent_sdk import (
    fork_session_via_store,
    get_session_messages_from_store,
    list_sessions_from_store,
    project_key_for_directory,
)
from claude_agent_sdk.testing import run_session_store_conformance
from claude_agent_sdk.types import SessionKey, SessionStoreEntry

from perdure.client.server import ServerClient
from perdure.errors import InvalidValue, Unavailable
from perdure.integrations.claude import PerdureSessionStore
from perdure.testing.logservers import LogServer


class Apart(PerdureSessionStore):
    """One of many on a server, none of which sees the others': the suite wants an empty one each time."""

    _numbers = itertools.count()

    def __init__(self, client: ServerClient) -> None:
        super().__init__(client)
        self._prefix = f"{next(self._numbers)}:"

    def _key(self, key: Any) -> Any:
        return {**key, "project_key": self._prefix + key["project_key"]}

    async def append(self, key: SessionKey, entries: list[SessionStoreEntry]) -> None:
        await super().append(self._key(key), entries)

    async def load(self, key: SessionKey) -> list[SessionStoreEntry] | None:
        return await super().load(self._key(key))

    async def list_sessions(self, project_key: str) -> Any:
        return await super().list_sessions(self._prefix + project_key)

    async def list_session_summaries(self, project_key: str) -> Any:
        return await super().list_session_summaries(self._prefix + project_key)

    async def list_subkeys(self, key: Any) -> list[str]:
        return await super().list_subkeys(self._key(key))

    async def delete(self, key: SessionKey) -> None:
        await super().delete(self._key(key))


def session() -> SessionKey:
    return {"project_key": f"-home-me-{uuid4()}", "session_id": str(uuid4())}


def line(text: str, session_id: str, parent: str | None = None, **fields: Any) -> Any:
    told = {"role": "user", "content": text}
    rest = {"sessionId": session_id, "timestamp": "2026-01-01T00:00:00.000Z", "cwd": "/home/me", "version": "1"}
    return {"type": "user", "uuid": str(uuid4()), "parentUuid": parent, "message": told, **rest, **fields}


async def test_it_conforms(log_server: LogServer) -> None:
    await run_session_store_conformance(lambda: Apart(log_server.client))


async def test_a_batch_that_is_sent_again_is_there_once(log_server: LogServer) -> None:
    store, key = PerdureSessionStore(log_server.client), session()
    lines = [line(str(n), key["session_id"]) for n in range(3)]
    await store.append(key, lines[:2])
    await asyncio.gather(*(store.append(key, lines) for _ in range(5)))
    assert await store.load(key) == lines
    title = cast(SessionStoreEntry, {"type": "custom-title", "customTitle": "x"})
    await store.append(key, [title])
    await store.append(key, [title])
    assert (await store.load(key) or [])[3:] == [title, title]


async def test_the_sdk_reads_lists_and_forks_it(log_server: LogServer, tmp_path: Path) -> None:
    store, one = PerdureSessionStore(log_server.client), str(uuid4())
    key: SessionKey = {"project_key": project_key_for_directory(tmp_path), "session_id": one}
    first = line("what is an owl?", one)
    await store.append(key, [first, line("and a crow?", one, first["uuid"])])
    (listed,) = await list_sessions_from_store(store, str(tmp_path))
    assert (listed.session_id, listed.first_prompt) == (one, "what is an owl?")
    forked = await fork_session_via_store(store, one, str(tmp_path), up_to_message_id=first["uuid"])
    told = await get_session_messages_from_store(store, forked.session_id, str(tmp_path))
    assert [message.message["content"] for message in told] == ["what is an owl?"]
    assert len(await list_sessions_from_store(store, str(tmp_path))) == 2


async def test_what_is_no_transcript_is_refused(log_server: LogServer) -> None:
    store, key = PerdureSessionStore(log_server.client), session()
    with pytest.raises(InvalidValue, match="not a JSON value"):
        await store.append(key, [cast(SessionStoreEntry, {"type": "x", "bad": object()})])
    assert await store.load(key) is None and await store.list_sessions(key["project_key"]) == []


async def test_a_server_that_is_away_is_said(log_server: LogServer) -> None:
    store, key = PerdureSessionStore(log_server.client), session()
    lines = [line("hello", key["session_id"])]
    await store.append(key, lines)
    log_server.kill()
    with pytest.raises(Unavailable, match="does not answer"):
        await store.append(key, lines)
    log_server.start()
    await store.append(key, lines)
    assert await store.load(key) == lines
