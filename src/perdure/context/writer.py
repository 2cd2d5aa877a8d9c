"""The single writer of a SQLite file: one thread, group commit.

Jobs that arrive while a commit is being synced to the disk share the next one. A job sees what the jobs before it
wrote; one that fails is undone alone (a savepoint). A job is acknowledged only after the commit that holds it.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from perdure.errors import NoRights, NoSpace, PerdureError, ProtocolError, Unavailable

Result = TypeVar("Result")
Job = Callable[[sqlite3.Connection], Any]

MAX_BATCH = 512
BUSY_TIMEOUT_MS = 5000


def connect(path: str, *, read_only: bool = False) -> sqlite3.Connection:
    """A connection in autocommit mode (transactions are written out), WAL, fully synced."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=64)
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    if read_only:
        connection.execute("PRAGMA query_only = ON")
    else:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
    return connection


def explain(error: sqlite3.Error, path: str) -> PerdureError:
    """What SQLite said, in our words."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return NoSpace(f"the disk of the context log {path} is full", hint="Free some space; nothing was lost.")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        hint = "Give this user the right to write to it and to its folder."
        return NoRights(f"the context log {path} cannot be written: {error}", hint=hint)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        hint = "End the program that holds it (an open sqlite3 shell?), then try again; nothing was lost."
        return Unavailable(f"another program holds a lock on the context log {path}", hint=hint)
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        hint = "Restore it from a backup, or move it away to begin with an empty log."
        return ProtocolError(f"the context log {path} is damaged or is not one: {error}", hint=hint)
    if code == sqlite3.SQLITE_IOERR:
        return Unavailable(f"the context log {path} cannot be read or written: {error}", hint="Check the disk.")
    return PerdureError(f"the context log {path}: {error}")


class Writer:
    """Runs jobs in the order they were submitted. ``close`` finishes what was submitted before it."""

    def __init__(self, path: str, connection: sqlite3.Connection) -> None:
        self._path = path
        self._connection = connection
        self._queue: queue.SimpleQueue[tuple[Job, asyncio.Future[Any]] | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="context-log-writer", daemon=True)
        self._thread.start()

    async def submit(self, job: Callable[[sqlite3.Connection], Result]) -> Result:
        """Run ``job`` in a transaction; returns its result once that is durable."""
        if self._closed:
            raise Unavailable(f"the context log {self._path} is closed")
        future: asyncio.Future[Result] = self._loop.create_future()
        self._queue.put((job, future))
        # A caller that goes away does not undo a write that is on its way.
        return await asyncio.shield(future)

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._queue.put(None)
            await asyncio.to_thread(self._thread.join)
            self._connection.close()

    def _run(self) -> None:
        last = False
        while not last:
            batch = [self._queue.get()]
            while len(batch) < MAX_BATCH:
                try:
                    batch.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            last = None in batch
            jobs = [item for item in batch if item is not None]
            if jobs:
                self._answer(jobs, self._commit([job for job, _ in jobs]))

    def _commit(self, jobs: list[Job]) -> list[Any]:
        """One result or exception per job."""
        execute = self._connection.execute
        results: list[Any] = []
        count = len(jobs)
        try:
            execute("BEGIN IMMEDIATE")
            if len(jobs) == 1:  # no savepoint: the transaction is its own
                results.append(jobs[0](self._connection))
                jobs = []
            for job in jobs:
                execute("SAVEPOINT job")
                try:
                    results.append(job(self._connection))
                except PerdureError as error:
                    execute("ROLLBACK TO job")
                    results.append(error)
                execute("RELEASE job")
            execute("COMMIT")
        except sqlite3.Error as error:
            self._rollback()
            return [explain(error, self._path)] * count
        except BaseException as error:
            self._rollback()
            return [error] * count
        return results

    def _rollback(self) -> None:
        if self._connection.in_transaction:
            try:
                self._connection.execute("ROLLBACK")
            except sqlite3.Error:
                pass  # SQLite has rolled back by itself (a full disk, an I/O error)

    def _answer(self, jobs: list[tuple[Job, asyncio.Future[Any]]], results: list[Any]) -> None:
        def deliver() -> None:
            for (_, future), result in zip(jobs, results, strict=True):
                if future.done():
                    continue
                if isinstance(result, BaseException):
                    future.set_exception(result)
                    future.exception()  # seen: a caller that went away does not want to hear of it
                else:
                    future.set_result(result)

        try:
            self._loop.call_soon_threadsafe(deliver)
        except RuntimeError:
            pass  # the loop was closed without closing the log; what is committed stays committed
