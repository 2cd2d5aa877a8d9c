"""The single writer of a SQLite file: one thread, group commit.

Jobs that arrive while a commit is being synced to the disk share the next one. A job sees what the jobs before it
changed; one that is refused has changed nothing. A job is acknowledged only after the commit that holds it.

Where a sync is cheap, the way to the thread and back is what an append costs most. So a brief job that nobody else
waits beside is committed by the event loop itself, while the last commits were all quick: the first slow one ends
that. There nothing is waited for but the sync. A lock that somebody has, and the checkpoint, are left to the thread.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Collection
from typing import Any, TypeVar

from perdure.context.changes import Job, Needs, State, apply
from perdure.context.faults import Faults
from perdure.context.sqlite import schema
from perdure.context.sqlite.known import Known
from perdure.errors import NoRights, NoSpace, PerdureError, ProtocolError, Unavailable

Result = TypeVar("Result")
Waiting = tuple[Job[Any], "asyncio.Future[Any]"]

MAX_BATCH = 512
BUSY_TIMEOUT_MS = 5000
QUICK_S = 0.001  # a commit
QUICK_IN_A_ROW = 8  # so many before the loop may be held up by one
HERE_IN_A_ROW = 64  # commits of the loop; then the thread has one, and does the checkpoint if it is time
CHECKPOINT_PAGES = 1000


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


def explain_open(error: sqlite3.Error, path: str) -> PerdureError:
    """The same of a log that was written before: it may be again, and no run is to fail of it meanwhile."""
    told = explain(error, path)
    return Unavailable(told.message, hint=told.hint) if isinstance(told, NoRights) else told


class Writer:
    """Runs jobs in the order they were submitted. ``close`` finishes what was submitted before it."""

    def __init__(self, path: str, connection: sqlite3.Connection, faults: Faults | None = None) -> None:
        self._path = path
        self._faults = faults
        self._connection = connection
        self._arrived: list[Waiting] = []  # in this turn of the loop
        self._queue: queue.SimpleQueue[list[Waiting] | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        # Cheaper than call_soon_threadsafe (21 µs to the thread and back, not 26): it is seen where a sync is cheap.
        self._answers: deque[tuple[list[Waiting], list[Any]]] = deque()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._loop.add_reader(self._bell, self._hear)
        self._known = Known()
        self._in_thread = 0  # jobs that it has
        self._quick = 0  # commits in a row
        self._here = 0  # commits of the loop since the last one of the thread
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="context-log-writer", daemon=True)
        self._thread.start()

    async def submit(self, job: Job[Result]) -> Result:
        """Apply ``job`` in a transaction; returns its result once that is durable."""
        if self._closed:
            raise Unavailable(f"the context log {self._path} is closed")
        future: asyncio.Future[Result] = self._loop.create_future()
        self._arrived.append((job, future))
        if len(self._arrived) == 1:
            try:
                await asyncio.sleep(0)  # what others submit in this turn of the loop goes with it
            finally:
                if not (self._may_commit_here() and self._commit_here()):
                    self._hand_over()
        return await future  # a caller that goes away does not undo a write that is on its way

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._hand_over()
            self._queue.put(None)
            await asyncio.to_thread(self._thread.join)
            self._deliver()
            self._loop.remove_reader(self._bell)
            os.close(self._bell)
            self._connection.close()

    def _hand_over(self) -> None:
        if self._arrived:
            self._in_thread += len(self._arrived)
            self._queue.put(self._arrived)
            self._arrived = []

    def _may_commit_here(self) -> bool:
        is_lone = len(self._arrived) == 1 and not self._in_thread and self._arrived[0][0].is_brief
        return is_lone and self._quick >= QUICK_IN_A_ROW and self._here < HERE_IN_A_ROW

    def _commit_here(self) -> bool:
        """In the loop. False: somebody has a lock."""
        self._here += 1
        if self._here == 1:
            self._wait_for_others(False)
        try:
            self._connection.execute("BEGIN IMMEDIATE")
        except sqlite3.Error:
            return False
        batch, self._arrived = self._arrived, []
        _tell(batch, self._commit([job for job, _ in batch]))
        return True

    def _wait_for_others(self, is_patient: bool) -> None:
        self._connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS if is_patient else 0}")
        self._connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES if is_patient else 0}")

    def _run(self) -> None:
        waiting: deque[Waiting] = deque()
        is_open = True
        while waiting or is_open:
            while is_open and not (waiting and self._queue.empty()):
                arrived = self._queue.get()
                is_open = arrived is not None
                waiting.extend(arrived or ())
            if waiting:
                batch = [waiting.popleft()]
                while waiting and len(batch) < MAX_BATCH and not (batch[0][0].alone or waiting[0][0].alone):
                    batch.append(waiting.popleft())
                if self._here:
                    self._here = 0
                    self._wait_for_others(True)
                self._answer(batch, self._commit([job for job, _ in batch]))

    def _commit(self, jobs: list[Job[Any]]) -> list[Any]:
        """One result or error per job. Begins a transaction, if none was."""
        db, begun = self._connection, time.perf_counter()
        try:
            if not db.in_transaction:
                db.execute("BEGIN IMMEDIATE")
            state = self._known.state(db, Needs.of(jobs))
            results = apply(jobs, state)
            if state.is_changed:
                write(db, state)
            if self._faults:
                self._faults.reach("before", state.points)
            db.execute("COMMIT")
            self._known.committed(state)
            if self._faults:
                self._faults.reach("after", state.points)
        except sqlite3.Error as error:
            self._rollback()
            return [explain_open(error, self._path)] * len(jobs)
        except BaseException as error:
            self._rollback()
            return [error] * len(jobs)
        if state.is_changed:  # otherwise nothing was synced
            self._quick = self._quick + 1 if time.perf_counter() - begun < QUICK_S else 0
        return results

    def _rollback(self) -> None:
        self._quick = 0  # who knows how long the next one takes
        self._known.forget()
        if self._connection.in_transaction:
            try:
                self._connection.execute("ROLLBACK")
            except sqlite3.Error:
                pass  # SQLite has rolled back by itself (a full disk, an I/O error)

    def _answer(self, batch: list[Waiting], results: list[Any]) -> None:
        self._answers.append((batch, results))
        os.eventfd_write(self._bell, 1)

    def _hear(self) -> None:
        """In the loop."""
        os.eventfd_read(self._bell)
        self._deliver()

    def _deliver(self) -> None:
        while self._answers:
            batch, results = self._answers.popleft()
            self._in_thread -= len(batch)
            _tell(batch, results)


def _tell(batch: list[Waiting], results: list[Any]) -> None:
    for (_, future), result in zip(batch, results, strict=True):
        if future.done():
            continue
        if isinstance(result, BaseException):
            future.set_exception(result)
            future.exception()  # seen: a caller that went away does not want to hear of it
        else:
            future.set_result(result)


def write(db: sqlite3.Connection, state: State) -> None:
    def each(statement: str, rows: Collection[tuple[Any, ...]]) -> None:
        if rows:  # a statement without any costs a microsecond, and most of them have none
            db.executemany(statement, rows)

    def each_id(statement: str, ids: Collection[str]) -> None:
        if ids:
            db.executemany(statement, [(one,) for one in ids])

    for run_id in state.dropped_logs:
        db.execute(schema.PRUNE, (run_id,))
        db.execute(schema.DROP_ENTRIES, (run_id,))
        db.execute(schema.DROP_KEYS, (run_id,))
    each(schema.CLEAR_ENTRIES, state.cleared)
    each(schema.CLEAR_KEYS, state.cleared)
    each_id(schema.RESTORE, state.restored_logs)
    each_id(schema.ALL_KEYS, state.restored_logs)
    each_id(schema.DROP_KIND, state.dropped_kinds)
    each_id(schema.RELEASE_KEY, state.released_keys)
    each(schema.INSERT_RUN, state.new_runs.values())
    each_id(schema.DELETE_TAGS, state.retagged)
    each(schema.INSERT_TAG, state.new_tags)
    each(schema.INSERT_BRANCH, state.new_branches)
    for run_id in state.changed_runs:
        run = state.runs[run_id]
        if run.listed is None:
            db.execute(schema.MOVE_RUN, (run.epoch, run.branch, run_id))
        else:
            row = (run.epoch, run.branch, run.version, run.value, *run.listed, run_id)
            db.execute(schema.UPDATE_RUN, row)
    each(schema.INSERT_BLOB, state.blobs.values())
    each(schema.INSERT_ENTRY, state.entries)
    whole = [entry[:3] for entry in state.entries if not entry[2] % schema.KEYED_BY]
    each(schema.KEYS, [(run_id, branch, seq - schema.KEYED_BY, seq) for run_id, branch, seq in whole])
    moved = [(tip, state.turns[tip]) for tip in state.changed_tips]
    each(schema.UPDATE_TIP, [(*state.tips[tip], turns.asked, turns.replayed, *tip) for tip, turns in moved])
    each(schema.SPEND, [(run_id, *spent.row) for run_id, spent in state.spent.items()])
    each(schema.SPEND_JOINTLY, [(*of, *spent.row) for of, spent in state.joint.items() if spent.is_any])
    for kept, value in state.keeps.items():
        if value is None:
            db.execute(schema.DROP, kept)
        else:
            db.execute(schema.KEEP, (*kept, state.kept[kept], value))
    each(schema.REMOVE_BLOB, state.removed_blobs)
    if state.is_sweep:
        db.execute(schema.COUNT_SWEEP, (state.sweep,))
