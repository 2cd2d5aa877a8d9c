"""Conversations of the OpenAI Agents SDK as sessions: ``PerdureSession`` is a ``Session``.

An item of a conversation is an entry ``item``. The SDK may take back the last one: that is an entry ``popped`` with its
seq, since entries are never changed.

Facts of the interface: ``agents.memory.session``, 0.24.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from agents.memory import SessionABC, SessionSettings

from perdure.client.server import ServerClient
from perdure.errors import LogConflict, NotFound
from perdure.integrations.keys import joined
from perdure.model import Entry

if TYPE_CHECKING:
    from agents import TResponseInputItem

TAGS = {"framework": "openai-agents"}
TRIES = 20  # of what others were in the way of


class PerdureSession(SessionABC):
    """Keeps a conversation in the context log of a Perdure server, for ``Runner.run(..., session=...)``.

    client: of the server (None: of this home's). session_settings: ``limit`` of the items that are given. Programs that
    write to one conversation follow each other. ``Unavailable``: the server is away; ``InvalidValue``: an item is no
    JSON value.
    """

    def __init__(
        self,
        session_id: str,
        client: ServerClient | None = None,
        *,
        session_settings: SessionSettings | None = None,
    ) -> None:
        self.session_id = session_id
        self.session_settings = session_settings or SessionSettings()
        self._name = joined("openai-agents", session_id)
        self._sessions = (client or ServerClient()).sessions

    async def get_items(self, limit: int | None = None) -> list[TResponseInputItem]:
        """The items in order: all, or the last ``limit``."""
        if limit is None and self.session_settings is not None:
            limit = self.session_settings.limit
        return await asyncio.to_thread(self._items, limit)

    def _items(self, limit: int | None) -> list[TResponseInputItem]:
        found: list[Any] = []
        if limit is not None and limit <= 0:
            return found
        try:
            for entry in self._newest():
                found.append(entry.payload)
                if limit is not None and len(found) == limit:
                    break
        except NotFound:
            return []
        return found[::-1]

    def _newest(self) -> Iterator[Entry]:
        """The items that were not taken back, the last first."""
        popped = set[int]()
        for entry in self._sessions.newest(self._name):
            if entry.kind == "popped":
                popped.add(entry.payload["seq"])
            elif entry.kind == "item" and entry.seq not in popped:
                yield entry

    async def add_items(self, items: list[TResponseInputItem]) -> None:
        """Append items, all or nothing."""
        if items:
            entries = [{"kind": "item", "payload": item} for item in items]
            await asyncio.to_thread(self._sessions.append, self._name, entries, tags=TAGS)

    async def pop_item(self) -> TResponseInputItem | None:
        """Take back the last item; None: there is none."""
        return await asyncio.to_thread(self._pop)

    def _pop(self) -> TResponseInputItem | None:
        for tried in range(TRIES):
            try:
                seq = self._sessions.get(self._name).seq
                last = next(self._newest(), None)
                if last is None:
                    return None
                taken = {"kind": "popped", "payload": {"seq": last.seq}}
                self._sessions.append(self._name, [taken], expected_seq=seq)
            except NotFound:
                return None
            except LogConflict:
                if tried == TRIES - 1:
                    raise
                continue  # somebody appended meanwhile
            return cast("TResponseInputItem", last.payload)
        return None

    async def clear_session(self) -> None:
        """Delete the conversation."""
        await asyncio.to_thread(self._clear)

    def _clear(self) -> None:
        try:
            self._sessions.delete(self._name)
        except NotFound:
            pass
