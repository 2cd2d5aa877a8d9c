"""The context log in one SQLite file: WAL, full sync, one writer with group commit, readers that never block it."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from perdure.context import keeping, schema
from perdure.context.appending import Packed, Tip
from perdure.context.chain import root_hash, verify
from perdure.context.log import (
    ROOT_BRANCH,
    Branch,
    Head,
    Kept,
    NewEntry,
    NewHead,
    Stretch,
    Verification,
    canonical,
    digest_of,
)
from perdure.context.rows import blob_of, blob_row, entry_of, head_of, no_run
from perdure.context.writer import Writer, connect, explain
from perdure.errors import AlreadyRunning, Conflict, InvalidValue, LogConflict, NoRights, NotFound, ProtocolError
from perdure.model import Entry

READERS = 2

Result = TypeVar("Result")


class SqliteLog:
    """See ``context.log.ContextLog``. Made by ``open``; belongs to the event loop that opened it."""

    def __init__(self, path: Path, lock: int, writer: Writer) -> None:
        self._path = str(path)
        self._lock = lock
        self._writer = writer
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="context-log-reader")
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._followers: dict[str, set[asyncio.Event]] = {}

    @staticmethod
    async def open(path: Path) -> SqliteLog:
        lock = _acquire(path)
        try:
            connection = await asyncio.to_thread(_prepare, path)
        except BaseException:
            os.close(lock)
            raise
        return SqliteLog(path, lock, Writer(str(path), connection))

    async def close(self) -> None:
        for events in self._followers.values():
            for event in events:
                event.set()
        await self._writer.close()
        await asyncio.to_thread(self._readers.shutdown)
        for connection in self._connections:
            connection.close()
        self._connections.clear()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # -- writing

    async def create(self, run_id: str, value: Any, *, key: str | None = None, replacing: str | None = None) -> Head:
        content, created = canonical(value), time.time()

        def job(db: sqlite3.Connection) -> Head:
            if key is not None:
                older = db.execute(schema.HEAD + "WHERE r.key = ?", (key,)).fetchone()
                if older and older[0] != replacing:
                    return head_of(older)
                if older:
                    db.execute("UPDATE runs SET key = NULL WHERE run_id = ?", (replacing,))
            if db.execute("SELECT 1 FROM runs WHERE run_id = ?", (run_id,)).fetchone():
                raise Conflict(f"there is a run {run_id} already")
            db.execute("INSERT INTO runs VALUES (?, ?, ?, 0, ?, 1, ?)", (run_id, key, created, ROOT_BRANCH, content))
            db.execute(schema.INSERT_BRANCH, (run_id, ROOT_BRANCH, None, 0, 0, root_hash(run_id), None))
            return head_of(db.execute(schema.HEAD + "WHERE r.run_id = ?", (run_id,)).fetchone())

        return await self._writer.submit(job)

    async def append(
        self,
        run_id: str,
        new_entries: Sequence[NewEntry],
        *,
        epoch: int | None,
        branch: int | None = None,
        expected_seq: int | None = None,
        head: NewHead | None = None,
    ) -> list[Entry]:
        packed = Packed(new_entries, head)

        def job(db: sqlite3.Connection) -> list[Entry]:
            tip = Tip.fenced(db, run_id, epoch)
            tip.go_to(branch)
            if expected_seq is not None and tip.seq != expected_seq:
                message = (
                    f"run {run_id}, branch {tip.branch}: expected to append after {expected_seq}, it is at {tip.seq}"
                )
                raise LogConflict(message, seq=tip.seq)
            return tip.write(packed)

        return await self._write(run_id, job)

    async def fork(
        self,
        run_id: str,
        new_entries: Sequence[NewEntry],
        *,
        parent: int,
        fork_seq: int,
        epoch: int | None,
        head: NewHead | None = None,
    ) -> list[Entry]:
        if not new_entries:
            raise InvalidValue(f"run {run_id}: a branch begins with at least one entry")
        packed = Packed(new_entries, head)

        def job(db: sqlite3.Connection) -> list[Entry]:
            tip = Tip.fenced(db, run_id, epoch)
            tip.fork(parent, fork_seq)
            return tip.write(packed)

        return await self._write(run_id, job)

    async def branch_off(
        self,
        run_id: str,
        value: Any,
        new_entries: Sequence[NewEntry],
        *,
        parent_run: str,
        parent: int,
        fork_seq: int,
        epoch: int,
    ) -> Head:
        if not new_entries:
            raise InvalidValue(f"run {run_id}: a branch begins with at least one entry")
        content, created, packed = canonical(value), time.time(), Packed(new_entries, None)

        def job(db: sqlite3.Connection) -> Head:
            if db.execute("SELECT 1 FROM runs WHERE run_id = ?", (run_id,)).fetchone():
                raise Conflict(f"there is a run {run_id} already")
            tip = Tip.fenced(db, parent_run, None)
            new = (run_id, None, created, epoch, ROOT_BRANCH, content)
            db.execute("INSERT INTO runs VALUES (?, ?, ?, ?, ?, 1, ?)", new)
            tip.branch_off(run_id, parent, fork_seq, epoch)
            tip.write(packed)
            return head_of(db.execute(schema.HEAD + "WHERE r.run_id = ?", (run_id,)).fetchone())

        return await self._writer.submit(job)

    async def _write(self, run_id: str, job: Callable[[sqlite3.Connection], list[Entry]]) -> list[Entry]:
        entries = await self._writer.submit(job)
        for event in self._followers.get(run_id, ()):
            event.set()
        return entries

    async def keep(self, kind: str, name: str, value: Any, *, expected_version: int | None = None) -> Kept:
        return await self._writer.submit(lambda db: keeping.keep(db, kind, name, value, expected_version))

    async def drop(self, kind: str, name: str) -> bool:
        return await self._writer.submit(lambda db: keeping.drop(db, kind, name))

    async def put_blob(self, content: bytes) -> str:
        digest = digest_of(content)
        row = blob_row(digest, content)
        await self._writer.submit(lambda db: db.execute(schema.INSERT_BLOB, row).rowcount)
        return digest

    # -- reading

    async def head(self, run_id: str) -> Head:
        row = await self._read(lambda db: db.execute(schema.HEAD + "WHERE r.run_id = ?", (run_id,)).fetchone())
        if row is None:
            raise no_run(run_id)
        return head_of(row)

    async def kept(self, kind: str, name: str | None = None) -> list[Kept]:
        return await self._read(lambda db: keeping.kept(db, kind, name))

    async def heads(self) -> list[Head]:
        rows = await self._read(lambda db: db.execute(schema.HEAD + "ORDER BY r.created, r.rowid").fetchall())
        return [head_of(row) for row in rows]

    async def branches(self, run_id: str) -> list[Branch]:
        query = "SELECT branch, parent, fork_seq, seq, parent_run FROM branches WHERE run_id = ? ORDER BY branch"
        rows = await self._read(lambda db: db.execute(query, (run_id,)).fetchall())
        if not rows:
            raise no_run(run_id)
        return [Branch(branch=b, parent=p, fork_seq=f, seq=s, parent_run=r) for b, p, f, s, r in rows]

    async def lineage(self, run_id: str, branch: int | None = None) -> list[Stretch]:
        found = await self._read(lambda db: _lineage(db, run_id, _branch(db, run_id, branch)))
        if not found:
            raise NotFound(f"run {run_id} has no branch {branch}")
        return found

    async def read(
        self,
        run_id: str,
        *,
        branch: int | None = None,
        after: int = 0,
        limit: int = 1000,
        expand: bool = True,
        kind: str | None = None,
    ) -> list[Entry]:
        def job(db: sqlite3.Connection) -> list[Entry]:
            at = _branch(db, run_id, branch)
            where = {"run_id": run_id, "branch": at, "after": after, "limit": limit, "kind": kind}
            return [entry_of(db, row, expand) for row in db.execute(schema.READ, where).fetchall()]

        return await self._read(job)

    async def find(self, run_id: str, branch: int, key: str) -> list[Entry]:
        def job(db: sqlite3.Connection) -> list[Entry]:
            where = {"run_id": run_id, "branch": branch, "key": key}
            return [entry_of(db, row, True) for row in db.execute(schema.FIND, where).fetchall()]

        return await self._read(job)

    async def count(self, run_id: str, kind: str) -> int:
        query = "SELECT count(*) FROM entries WHERE run_id = ? AND kind = ?"
        row = await self._read(lambda db: db.execute(query, (run_id, kind)).fetchone())
        return int(row[0])

    async def follow(
        self, run_id: str, *, branch: int | None = None, after: int = 0, expand: bool = True
    ) -> AsyncIterator[Entry]:
        # The event only says "look again": what is yielded is what the file has.
        event = asyncio.Event()
        self._followers.setdefault(run_id, set()).add(event)
        try:
            current = branch if branch is not None else (await self.head(run_id)).branch
            while self._lock >= 0:
                event.clear()
                page = await self.read(run_id, branch=current, after=after, expand=expand)
                for entry in page:
                    after = entry.seq
                    yield entry
                if page:
                    continue
                newest = current if branch is not None else (await self.head(run_id)).branch
                if newest != current:
                    after = min(after, await self._parting(run_id, current, newest))
                    current = newest
                    continue
                await event.wait()
        finally:
            self._followers[run_id].discard(event)
            if not self._followers[run_id]:
                del self._followers[run_id]

    async def _parting(self, run_id: str, one: int, other: int) -> int:
        """The last seq that two branches share."""

        def job(db: sqlite3.Connection) -> int:
            ways = [{(s.run_id, s.branch): s.upto for s in _lineage(db, run_id, b)} for b in (one, other)]
            return int(max(min(ways[0][b], ways[1][b]) for b in ways[0].keys() & ways[1].keys()))

        return await self._read(job)

    async def get_blob(self, digest: str) -> bytes:
        return await self._read(lambda db: blob_of(db, digest))

    async def verify(self, run_id: str) -> Verification:
        branches = await self.branches(run_id)

        def job(db: sqlite3.Connection) -> Verification:
            above = [shared for shared in _lineage(db, run_id, ROOT_BRANCH)[::-1] if shared.run_id != run_id]
            own = [Stretch(run_id=run_id, branch=b.branch, fork_seq=b.fork_seq, upto=b.seq) for b in branches]
            parents = {(run_id, b.branch): (b.parent_run or run_id, b.parent) for b in branches if b.parent}
            parents |= {(s.run_id, s.branch): (p.run_id, p.branch) for p, s in pairwise(above)}
            return verify([*above, *own], parents, _rows(db), lambda digest: blob_of(db, digest))

        return await self._read(job)

    async def _read(self, job: Callable[[sqlite3.Connection], Result]) -> Result:
        def call() -> Result:
            db = getattr(self._local, "connection", None)
            try:
                if db is None:
                    db = self._local.connection = connect(self._path, read_only=True)
                    self._connections.append(db)
                return job(db)
            except sqlite3.Error as error:
                raise explain(error, self._path) from error

        return await asyncio.get_running_loop().run_in_executor(self._readers, call)


def _acquire(path: Path) -> int:
    """One process per file: a lock beside it (closing any descriptor of the file itself would drop SQLite's locks)."""
    beside = path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        hint = "Give this user the right to write there, or name another folder with PERDURE_HOME."
        raise NoRights(f"the context log {path} cannot be written: {error.strerror}", hint=hint) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.pread(lock, 20, 0).decode("ascii", "replace").strip()
        os.close(lock)
        hint = f"Use that one, or end it first (kill {owner})." if owner else "Use that one, or end it first."
        raise AlreadyRunning(f"process {owner or '?'} has the context log {path} open", hint=hint) from error
    os.ftruncate(lock, 0)
    os.pwrite(lock, b"%d\n" % os.getpid(), 0)
    return lock


def _prepare(path: Path) -> sqlite3.Connection:
    try:
        connection = connect(str(path))
    except sqlite3.Error as error:
        raise explain(error, str(path)) from error
    try:
        found = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        empty = not connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
        if empty and found == 0:
            connection.executescript("BEGIN IMMEDIATE;" + schema.SCHEMA + "COMMIT;")
        elif found != schema.APPLICATION_ID:
            raise ProtocolError(f"{path} is an SQLite file, but not a context log", hint="Move it away.")
        elif version > schema.VERSION:
            hint = "Install the newer perdure again; older ones do not read it."
            raise ProtocolError(f"the context log {path} has version {version}, this is {schema.VERSION}", hint=hint)
        for new in range(max(version, 1) + 1, schema.VERSION + 1):
            step = schema.MIGRATIONS[new] + f"PRAGMA user_version = {new};"
            connection.executescript("BEGIN IMMEDIATE;" + step + "COMMIT;")
        with closing(connection.execute("BEGIN IMMEDIATE")):
            connection.execute("ROLLBACK")  # fails now, not at the first entry, where the file is read-only
    except sqlite3.Error as error:
        connection.close()
        raise explain(error, str(path)) from error
    except BaseException:
        connection.close()
        raise
    path.chmod(0o600)
    return connection


def _branch(db: sqlite3.Connection, run_id: str, branch: int | None) -> int:
    if branch is not None:
        return branch
    row = db.execute("SELECT branch FROM runs WHERE run_id = ?", (run_id,)).fetchone()
    if row is None:
        raise no_run(run_id)
    return int(row[0])


def _lineage(db: sqlite3.Connection, run_id: str, branch: int) -> list[Stretch]:
    query = schema.PATH + "SELECT run_id, branch, fork_seq, upto FROM path"
    rows = db.execute(query, {"run_id": run_id, "branch": branch}).fetchall()
    return [Stretch(run_id=run, branch=b, fork_seq=f, upto=u) for run, b, f, u in rows]


def _rows(db: sqlite3.Connection) -> Callable[[Stretch], sqlite3.Cursor]:
    return lambda of: db.execute(
        schema.ENTRY + "WHERE run_id = ? AND branch = ? AND seq <= ? ORDER BY seq",
        (of.run_id, of.branch, of.upto),
    )
