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
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import zstandard

from perdure.context import schema
from perdure.context.chain import entry_hash, root_hash
from perdure.context.log import ROOT_BRANCH, Branch, Head, NewEntry, NewHead, Verification, canonical, digest_of
from perdure.context.values import Blobs, pack, unpack
from perdure.context.writer import Writer, connect, explain
from perdure.errors import AlreadyRunning, Conflict, InvalidValue, LogConflict, NotFound, ProtocolError, StaleEpoch
from perdure.model import Entry

READERS = 2
COMPRESS_FROM = 256  # bytes

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

    async def create(self, run_id: str, value: Any, *, key: str | None = None) -> Head:
        content, created = canonical(value), time.time()

        def job(db: sqlite3.Connection) -> Head:
            if key is not None:
                older = db.execute(schema.HEAD + "WHERE r.key = ?", (key,)).fetchone()
                if older:
                    return _head(older)
            if db.execute("SELECT 1 FROM runs WHERE run_id = ?", (run_id,)).fetchone():
                raise Conflict(f"there is a run {run_id} already")
            db.execute("INSERT INTO runs VALUES (?, ?, ?, 0, ?, 1, ?)", (run_id, key, created, ROOT_BRANCH, content))
            first = (run_id, ROOT_BRANCH, None, 0, 0, root_hash(run_id))
            db.execute("INSERT INTO branches VALUES (?, ?, ?, ?, ?, ?)", first)
            return _head(db.execute(schema.HEAD + "WHERE r.run_id = ?", (run_id,)).fetchone())

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
        packed = _Packed(new_entries, head)

        def job(db: sqlite3.Connection) -> list[Entry]:
            tip = _Tip.fenced(db, run_id, epoch)
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
        packed = _Packed(new_entries, head)

        def job(db: sqlite3.Connection) -> list[Entry]:
            tip = _Tip.fenced(db, run_id, epoch)
            tip.fork(parent, fork_seq)
            return tip.write(packed)

        return await self._write(run_id, job)

    async def _write(self, run_id: str, job: Callable[[sqlite3.Connection], list[Entry]]) -> list[Entry]:
        entries = await self._writer.submit(job)
        for event in self._followers.get(run_id, ()):
            event.set()
        return entries

    async def put_blob(self, content: bytes) -> str:
        digest = digest_of(content)
        row = _blob_row(digest, content)
        await self._writer.submit(lambda db: db.execute(schema.INSERT_BLOB, row).rowcount)
        return digest

    # -- reading

    async def head(self, run_id: str) -> Head:
        row = await self._read(lambda db: db.execute(schema.HEAD + "WHERE r.run_id = ?", (run_id,)).fetchone())
        if row is None:
            raise _no_run(run_id)
        return _head(row)

    async def heads(self) -> list[Head]:
        rows = await self._read(lambda db: db.execute(schema.HEAD + "ORDER BY r.created, r.rowid").fetchall())
        return [_head(row) for row in rows]

    async def branches(self, run_id: str) -> list[Branch]:
        query = "SELECT branch, parent, fork_seq, seq FROM branches WHERE run_id = ? ORDER BY branch"
        rows = await self._read(lambda db: db.execute(query, (run_id,)).fetchall())
        if not rows:
            raise _no_run(run_id)
        return [Branch(branch=b, parent=p, fork_seq=f, seq=s) for b, p, f, s in rows]

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
            return [_entry(db, row, expand) for row in db.execute(schema.READ, where).fetchall()]

        return await self._read(job)

    async def find(self, run_id: str, branch: int, key: str) -> list[Entry]:
        def job(db: sqlite3.Connection) -> list[Entry]:
            where = {"run_id": run_id, "branch": branch, "key": key}
            return [_entry(db, row, True) for row in db.execute(schema.FIND, where).fetchall()]

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
            query = schema.PATH + "SELECT branch, upto FROM path"
            ways = [dict(db.execute(query, {"run_id": run_id, "branch": b}).fetchall()) for b in (one, other)]
            return int(max(min(ways[0][b], ways[1][b]) for b in ways[0].keys() & ways[1].keys()))

        return await self._read(job)

    async def get_blob(self, digest: str) -> bytes:
        return await self._read(lambda db: _blob(db, digest))

    async def verify(self, run_id: str) -> Verification:
        branches = await self.branches(run_id)

        def job(db: sqlite3.Connection) -> Verification:
            from perdure.context.chain import verify

            return verify(run_id, branches, _rows(db, run_id), lambda digest: _blob(db, digest))

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


class _Packed:
    """Entries made ready outside the writer's thread: only inserting is left."""

    def __init__(self, new_entries: Sequence[NewEntry], head: NewHead | None) -> None:
        blobs: Blobs = {}
        self.entries = new_entries
        self.payloads = [canonical(pack(new.payload, blobs)) for new in new_entries]
        self.blobs = [_blob_row(digest, content) for digest, content in blobs.items()]
        self.head = head
        self.value = canonical(head.value) if head else b""


class _Tip:
    """Where the next entry of a run goes; lives for one job of the writer."""

    def __init__(self, db: sqlite3.Connection, run_id: str, row: tuple[Any, ...]) -> None:
        self.db, self.run_id = db, run_id
        self.epoch, self.branch, self.version = row
        self.seq, self.hash = 0, b""

    @staticmethod
    def fenced(db: sqlite3.Connection, run_id: str, epoch: int | None) -> _Tip:
        row = db.execute("SELECT epoch, branch, version FROM runs WHERE run_id = ?", (run_id,)).fetchone()
        if row is None:
            raise _no_run(run_id)
        tip = _Tip(db, run_id, row)
        if epoch is not None and epoch < tip.epoch:
            hint = "Another machine goes on with this run; this one is to end."
            raise StaleEpoch(f"run {run_id} is in epoch {tip.epoch}, not {epoch} any more", hint=hint, epoch=tip.epoch)
        if epoch is not None and epoch > tip.epoch:
            db.execute("UPDATE runs SET epoch = ? WHERE run_id = ?", (epoch, run_id))
            tip.epoch = epoch
        return tip

    def go_to(self, branch: int | None) -> None:
        self.branch = self.branch if branch is None else branch
        query = "SELECT seq, hash FROM branches WHERE run_id = ? AND branch = ?"
        row = self.db.execute(query, (self.run_id, self.branch)).fetchone()
        if row is None:
            raise NotFound(f"run {self.run_id} has no branch {self.branch}")
        self.seq, self.hash = row

    def fork(self, parent: int, fork_seq: int) -> None:
        self.go_to(parent)
        if not 0 <= fork_seq <= self.seq:
            raise InvalidValue(f"run {self.run_id}, branch {parent}: no fork at {fork_seq}, it has 1 to {self.seq}")
        where = {"run_id": self.run_id, "branch": parent, "after": fork_seq - 1, "limit": 1, "kind": None}
        row = self.db.execute(schema.READ, where).fetchone() if fork_seq else None
        self.seq, self.hash = fork_seq, row[8] if row else root_hash(self.run_id)
        query = "SELECT max(branch) + 1 FROM branches WHERE run_id = ?"
        self.branch = self.db.execute(query, (self.run_id,)).fetchone()[0]
        new = (self.run_id, self.branch, parent, fork_seq, fork_seq, self.hash)
        self.db.execute("INSERT INTO branches VALUES (?, ?, ?, ?, ?, ?)", new)
        self.db.execute("UPDATE runs SET branch = ? WHERE run_id = ?", (self.branch, self.run_id))

    def write(self, packed: _Packed) -> list[Entry]:
        if packed.head:
            if packed.head.expected_version != self.version:
                message = f"run {self.run_id}: its state was changed meanwhile (version {self.version})"
                raise LogConflict(message, version=self.version)
            update = "UPDATE runs SET value = ?, version = version + 1 WHERE run_id = ?"
            self.db.execute(update, (packed.value, self.run_id))
        self.db.executemany(schema.INSERT_BLOB, packed.blobs)
        now = time.time()
        written = []
        for new, payload in zip(packed.entries, packed.payloads, strict=True):
            self.seq += 1
            facts = (self.run_id, self.branch, self.seq, self.epoch, now, new.kind, new.key, payload)
            self.hash = entry_hash(self.hash, facts)
            self.db.execute(schema.INSERT_ENTRY, (*facts, self.hash))
            written.append(_as_entry((*facts, self.hash), new.payload))
        if written:
            update = "UPDATE branches SET seq = ?, hash = ? WHERE run_id = ? AND branch = ?"
            self.db.execute(update, (self.seq, self.hash, self.run_id, self.branch))
        return written


def _acquire(path: Path) -> int:
    """One process per file: a lock beside it (closing any descriptor of the file itself would drop SQLite's locks)."""
    beside = path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        from perdure.errors import NoRights

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


def _no_run(run_id: str) -> NotFound:
    return NotFound(f"no such run: {run_id}", hint="`perdure runs` lists them.")


def _branch(db: sqlite3.Connection, run_id: str, branch: int | None) -> int:
    if branch is not None:
        return branch
    row = db.execute("SELECT branch FROM runs WHERE run_id = ?", (run_id,)).fetchone()
    if row is None:
        raise _no_run(run_id)
    return int(row[0])


def _head(row: tuple[Any, ...]) -> Head:
    run_id, key, created, epoch, branch, seq, version, value = row
    decoded = msgspec.json.decode(value)
    return Head(
        run_id=run_id, key=key, created=created, epoch=epoch, branch=branch, seq=seq, version=version, value=decoded
    )


def _as_entry(row: tuple[Any, ...], payload: Any) -> Entry:
    run_id, branch, seq, epoch, at, kind, key, _, digest = row
    return Entry(
        run_id=run_id,
        branch=branch,
        seq=seq,
        epoch=epoch,
        time=at,
        kind=kind,
        key=key,
        payload=payload,
        hash=digest.hex(),
    )


def _entry(db: sqlite3.Connection, row: tuple[Any, ...], expand: bool) -> Entry:
    payload = msgspec.json.decode(row[7])
    return _as_entry(row, unpack(payload, lambda digest: _blob(db, digest)) if expand else payload)


def _rows(db: sqlite3.Connection, run_id: str) -> Callable[[int], sqlite3.Cursor]:
    return lambda branch: db.execute(
        schema.ENTRY + "WHERE run_id = ? AND branch = ? ORDER BY seq",
        (run_id, branch),
    )


def _blob_row(digest: str, content: bytes) -> tuple[bytes, int, bytes]:
    key = bytes.fromhex(digest.removeprefix("sha256:"))
    if len(content) >= COMPRESS_FROM:
        frame = zstandard.ZstdCompressor(level=3).compress(content)
        if len(frame) < len(content):
            return key, 1, frame
    return key, 0, content


def _blob(db: sqlite3.Connection, digest: str) -> bytes:
    try:
        key = bytes.fromhex(digest.removeprefix("sha256:"))
    except ValueError:
        key = b""
    row = db.execute("SELECT zstd, content FROM blobs WHERE digest = ?", (key,)).fetchone()
    if row is None:
        raise NotFound(f"no such blob: {digest}")
    try:
        content = zstandard.ZstdDecompressor().decompress(row[1]) if row[0] else bytes(row[1])
    except zstandard.ZstdError as error:
        raise ProtocolError(f"blob {digest} does not unpack: {error}") from error
    if digest_of(content) != digest:
        raise ProtocolError(f"blob {digest} has other bytes than those it was written with")
    return content
