"""The context log in one SQLite file: WAL, full sync, one writer with group commit, readers that never block it."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import threading
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from perdure.context.changes import Job
from perdure.context.faults import Faults
from perdure.context.listing import listed
from perdure.context.rows import blob_of, refs_of, unzipped
from perdure.context.sqlite import schema
from perdure.context.sqlite.writer import Writer, connect, explain, explain_open
from perdure.errors import AlreadyRunning, NoRights, ProtocolError

READERS = 2

Result = TypeVar("Result")


class SqliteDatabase:
    """See ``context.stored.Database``. One process has the file: nobody else writes to it."""

    leases = None
    by_key = schema.BY_KEY

    def __init__(self, path: Path, lock: int, writer: Writer) -> None:
        self.name = str(path)
        self._lock = lock
        self._writer = writer
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="context-log-reader")
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []

    @staticmethod
    async def open(path: Path, faults: Faults | None = None) -> SqliteDatabase:
        lock = _acquire(path)
        try:
            connection = await asyncio.to_thread(_prepare, path)
        except BaseException:
            os.close(lock)
            raise
        return SqliteDatabase(path, lock, Writer(str(path), connection, faults))

    async def close(self) -> None:
        await self._writer.close()
        await asyncio.to_thread(self._readers.shutdown)
        for connection in self._connections:
            connection.close()
        self._connections.clear()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def watch(self, run_ids: Callable[[], Iterable[str]], wake: Callable[[str | None], None]) -> None:
        pass  # there are no others

    def submit(self, job: Job[Result]) -> Awaitable[Result]:
        return self._writer.submit(job)

    async def rows(self, query: str, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        return await self._read(lambda db: db.execute(query, values).fetchall())

    async def blobs(self, keys: Collection[bytes], *, deep: bool) -> dict[bytes, bytes]:
        def job(db: sqlite3.Connection) -> dict[bytes, bytes]:
            found, wanted = dict[bytes, bytes](), list(keys)
            while wanted:
                key = wanted.pop()
                row = db.execute(schema.BLOB, (key,)).fetchone() if key not in found else None
                if row:
                    found[key] = blob_of(key, row[0], row[1])
                    if deep:
                        wanted += [row[2][at : at + 32] for at in range(0, len(row[2]), 32)]
            return found

        return await self._read(job)

    async def _read(self, job: Callable[[sqlite3.Connection], Result]) -> Result:
        def call() -> Result:
            db = getattr(self._local, "connection", None)
            try:
                if db is None:
                    db = self._local.connection = connect(self.name, read_only=True)
                    self._connections.append(db)
                return job(db)
            except sqlite3.Error as error:
                raise explain_open(error, self.name) from error

        return await asyncio.get_running_loop().run_in_executor(self._readers, call)


def _acquire(path: Path) -> int:
    """One process per file: a lock beside it (closing any descriptor of the file itself would drop SQLite's locks)."""
    try:
        path = path.resolve()  # two servers may come to one file by two links
        beside = path.with_name(path.name + ".lock")
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
        _migrate(connection, max(version, 1))
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


def _migrate(connection: sqlite3.Connection, version: int) -> None:
    """From one version to the next, each in a transaction: what is interrupted leaves the older one."""
    if version == schema.VERSION:
        return
    connection.create_function("perdure_listed", 2, lambda value, column: listed(msgspec.json.decode(value))[column])
    connection.create_function("perdure_references", 2, lambda zstd, content: refs_of(unzipped(zstd, content)))
    for new in range(version + 1, schema.VERSION + 1):
        step = schema.MIGRATIONS[new] + f"PRAGMA user_version = {new};"
        connection.executescript("BEGIN IMMEDIATE;" + step + "COMMIT;")
