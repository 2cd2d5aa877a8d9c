"""The table ``kept``: what the log's owner keeps beside the runs, by kind and name."""

from __future__ import annotations

import sqlite3
from typing import Any

import msgspec

from perdure.context.log import Kept, canonical
from perdure.errors import Conflict, LogConflict, NotFound


def keep(db: sqlite3.Connection, kind: str, name: str, value: Any, expected_version: int | None) -> Kept:
    row = db.execute("SELECT version FROM kept WHERE kind = ? AND name = ?", (kind, name)).fetchone()
    if row is not None and expected_version == 0:
        raise Conflict(f"there is a {kind} {name} already")
    if row is None and expected_version:
        raise NotFound(f"no such {kind}: {name}")
    if row is not None and expected_version not in (None, row[0]):
        raise LogConflict(f"the {kind} {name} was changed meanwhile (version {row[0]})", version=row[0])
    version = row[0] + 1 if row else 1
    db.execute("INSERT OR REPLACE INTO kept VALUES (?, ?, ?, ?)", (kind, name, version, canonical(value)))
    return Kept(kind=kind, name=name, version=version, value=value)


def kept(db: sqlite3.Connection, kind: str, name: str | None) -> list[Kept]:
    query = "SELECT kind, name, version, value FROM kept WHERE kind = ? AND (? IS NULL OR name = ?) ORDER BY name"
    rows = db.execute(query, (kind, name, name)).fetchall()
    return [Kept(kind=k, name=n, version=v, value=msgspec.json.decode(value)) for k, n, v, value in rows]


def drop(db: sqlite3.Connection, kind: str, name: str) -> bool:
    return db.execute("DELETE FROM kept WHERE kind = ? AND name = ?", (kind, name)).rowcount > 0
