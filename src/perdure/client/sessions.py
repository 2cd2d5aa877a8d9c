"""The client of a server's sessions (``ServerClient.sessions``)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import msgspec

from perdure.client.transport import Transport
from perdure.errors import InvalidValue
from perdure.model import Entry, SessionInfo

PAGE = 1000
KEYS = 500  # that are looked up at once
UNSET: Any = object()  # a value that stays as it is


class SessionsClient:
    """A session is a log that a program writes which is no run (docs/integrations.md): entries with a kind, a payload
    and maybe a key, and a ``value``, which is replaced whole. ``NotFound`` names a session that is not there."""

    def __init__(self, http: Transport) -> None:
        self._http = http

    def make(self, name: str, *, tags: Mapping[str, str] | None = None, value: Any = None) -> SessionInfo:
        """It stays as it is where there is one of this name."""
        body = {"name": name, "tags": dict(tags or {}), "value": value}
        return msgspec.convert(self._http.call("POST", "/v1/sessions", json_body=body), SessionInfo)

    def get(self, name: str) -> SessionInfo:
        return msgspec.convert(self._http.call("GET", _path(name)), SessionInfo)

    def all(self, tags: Mapping[str, str] | None = None) -> Iterator[SessionInfo]:
        """Oldest first: those that have all these tags."""
        query: dict[str, Any] = {"tag": [f"{tag}={text}" for tag, text in (tags or {}).items()], "limit": PAGE}
        while page := self._http.call("GET", "/v1/sessions", query=query)["sessions"]:
            yield from msgspec.convert(page, list[SessionInfo])
            if len(page) < PAGE:
                return
            query["beyond"] = page[-1]["id"]

    def delete(self, name: str) -> None:
        """What its forks share stays for them."""
        self._http.call("DELETE", _path(name))

    def append(
        self,
        name: str,
        entries: Iterable[Mapping[str, Any]] = (),
        *,
        tags: Mapping[str, str] | None = None,
        expected_seq: int | None = None,
        value: Any = UNSET,
        expected_version: int | None = None,
    ) -> SessionInfo:
        """Append entries (``kind``, ``payload``, ``key``; ``once``: unless one with its key is there), all or nothing.

        tags: makes the session where there is none. expected_seq, expected_version: ``LogConflict`` where its last
        entry, or the version of its value, is another one. value: replaces the one that it has.
        """
        body: dict[str, Any] = {"entries": [dict(entry) for entry in entries]}
        said = {"tags": tags, "expected_seq": expected_seq, "expected_version": expected_version}
        body |= {field: what for field, what in said.items() if what is not None}
        if value is not UNSET:
            body["value"] = value
        try:
            told = self._http.call("POST", _path(name, "entries"), json_body=body)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidValue(f"an entry for session {name!r} is not a JSON value: {error}") from error
        return msgspec.convert(told["session"], SessionInfo)

    def entries(self, name: str, *, after: int = 0, kind: str | None = None, compact: bool = False) -> Iterator[Entry]:
        """In order. compact leaves large values as references."""
        query = {"kind": kind, "limit": PAGE, "compact": 1 if compact else None}
        while page := self._page(name, {**query, "after": after}):
            yield from page
            if len(page) < PAGE:
                return
            after = page[-1].seq

    def newest(
        self, name: str, *, before: int | None = None, limit: int | None = None, kind: str = "", key: str = ""
    ) -> Iterator[Entry]:
        """Last first: all, or of one kind or key."""
        left = limit
        while left is None or left > 0:
            some = PAGE if left is None else min(left, PAGE)
            page = self._page(name, {"newest": 1, "before": before, "kind": kind, "key": key, "limit": some})
            yield from page
            if len(page) < some:
                return
            before, left = page[-1].seq, None if left is None else left - len(page)
            if before <= 1:
                return

    def find(self, name: str, keys: Sequence[str]) -> list[Entry]:
        """All entries with one of these keys, in order."""
        found: list[Entry] = []
        for first in range(0, len(keys), KEYS):
            body = {"keys": list(keys[first : first + KEYS])}
            page = self._http.call("POST", _path(name, "find"), json_body=body)["entries"]
            found += msgspec.convert(page, list[Entry])
        return sorted(found, key=lambda entry: entry.seq)

    def fork(
        self,
        name: str,
        new_name: str,
        *,
        at: int | None = None,
        tags: Mapping[str, str] | None = None,
        value: Any = UNSET,
    ) -> SessionInfo:
        """Another session that shares the entries up to ``at`` (None: all); with the same tags and value, where no
        others are given. ``Conflict``: there is one of this name."""
        body: dict[str, Any] = {"name": new_name, "at": at, "tags": None if tags is None else dict(tags)}
        if value is not UNSET:
            body["value"] = value
        return msgspec.convert(self._http.call("POST", _path(name, "fork"), json_body=body), SessionInfo)

    def keep(self, name: str, seqs: Sequence[int], *, expected_seq: int, value: Any = UNSET) -> SessionInfo:
        """Only these entries stay, numbered anew; the others are gone. ``LogConflict``: somebody appended meanwhile."""
        body: dict[str, Any] = {"seqs": list(seqs), "expected_seq": expected_seq}
        if value is not UNSET:
            body["value"] = value
        return msgspec.convert(self._http.call("POST", _path(name, "keep"), json_body=body), SessionInfo)

    def _page(self, name: str, query: dict[str, Any]) -> list[Entry]:
        return msgspec.convert(self._http.call("GET", _path(name, "entries"), query=query)["entries"], list[Entry])


def _path(name: str, part: str = "") -> str:
    return f"/v1/sessions/{quote(name, safe='')}" + (f"/{part}" if part else "")
