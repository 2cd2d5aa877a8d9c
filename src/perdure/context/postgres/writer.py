"""The writer of one server on PostgreSQL: group commit in one round trip, or two.

Jobs that arrive while a commit is on its way share the next one. What they need to know is read, and locked, in one
round trip; what they change is written and committed in another. Servers that write to the same run wait for each
other's locks there; each sees what the other committed. A job is acknowledged only after the commit that holds it.

Entries for runs that this writer wrote to before take the second round trip alone: it knows them (``remembered``), and
the transaction looks whether that is still so, or does nothing.

A connection that broke since it was last used (the database was restarted) is made anew, and nobody hears of it.

When the connection breaks in the middle of a commit, the database is asked what became of it: so that what was
committed is acknowledged, and what is refused as ``Unavailable`` was not (unless the database stays away).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

import psycopg
from psycopg import errors

from perdure.context.changes import Job, Needs, RunRow, State, apply
from perdure.context.faults import Faults
from perdure.context.postgres import outcome, schema
from perdure.context.postgres.connections import CONNECT_S, LOST, PATIENCE_S, RETRY_S, STATEMENT_S, Address, Connection
from perdure.context.postgres.exchange import Asked, Exchange
from perdure.context.postgres.outcome import Sent
from perdure.context.postgres.remembered import Remembered
from perdure.context.postgres.writes import writes
from perdure.errors import LeaseLost, PerdureError, Unavailable

Result = TypeVar("Result")
Waiting = tuple[Job[Any], "asyncio.Future[Any]", str]  # and the lease under which it was asked for

MAX_BATCH = 512
TRIES = 10  # of a batch that another server's was in the way of
OUTCOME_S = 10.0  # so long it is asked what became of a commit
COMMIT: Asked = ("COMMIT", [])
ROLLBACK: Asked = ("ROLLBACK", [])  # psycopg, where it hears of one, drops all prepared statements


class Writer:
    """Runs jobs in the order they were submitted. ``close`` finishes what was submitted before it."""

    def __init__(
        self,
        address: Address,
        connection: Connection,
        tell: Callable[[Collection[str]], None],
        faults: Faults | None = None,
    ) -> None:
        """tell: is told the ids of runs that were written to."""
        self._address = address
        self._connection: Connection | None = connection
        self._exchange: Exchange | None = None  # of the connection
        self._session = outcome.NO_SESSION  # that one
        self._remembered = Remembered()
        self._tell, self._faults = tell, faults
        self._queue: asyncio.Queue[Waiting | None] = asyncio.Queue()
        self._closed = False
        self.lease = ""  # the server whose lease everything is written under; "": none is needed
        self._sent: Sent | None = None  # whose commit is on its way
        self._task = asyncio.create_task(self._run(), name="context-log-writer")

    async def submit(self, job: Job[Result]) -> Result:
        """Apply ``job`` in a transaction; returns its result once that is durable."""
        if self._closed:
            raise Unavailable(f"the context log {self._address.name} is closed")
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((job, future, self.lease))
        return await future  # a caller that goes away does not undo a write that is on its way

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._queue.put_nowait(None)
            await self._task
            await self._drop()

    async def _run(self) -> None:
        kept: Waiting | None = None  # was taken, but is of the next batch
        while True:
            first = kept or await self._queue.get()
            if first is None:
                return
            batch, kept, last = [first], None, False
            while len(batch) < MAX_BATCH and not batch[-1][0].alone and not kept and not last:
                if self._queue.empty():
                    break
                found = self._queue.get_nowait()
                if found is None:
                    last = True
                elif found[0].alone or found[2] != batch[0][2]:
                    kept = found
                else:
                    batch.append(found)
            results = await self._commit([job for job, _, _ in batch], batch[0][2])
            for (_, future, _), result in zip(batch, results, strict=True):
                if future.done():
                    continue
                if isinstance(result, BaseException):
                    future.set_exception(result)
                    future.exception()  # seen: a caller that went away does not want to hear of it
                else:
                    future.set_result(result)
            if last:
                return

    async def _commit(self, jobs: list[Job[Any]], lease: str) -> list[Any]:
        """One result or error per job."""
        was_open = self._connection is not None
        for tried in range(1, TRIES + 1):
            results: list[Any] = []
            self._sent = None
            try:
                async with asyncio.timeout(STATEMENT_S + CONNECT_S):
                    await self._transaction(jobs, lease, results)
                return results
            except (errors.UniqueViolation, errors.DeadlockDetected, errors.SerializationFailure) as error:
                # Another server was first: what is known now is newer.
                await self._drop()
                was_open = False
                if tried == TRIES:
                    return [self._address.explain_open(error)] * len(jobs)
            except (psycopg.Error, TimeoutError, PerdureError) as error:
                is_stale, is_asked = was_open and self._is_broken, self._is_asked
                await self._drop()
                if isinstance(error, (*LOST, TimeoutError)):
                    is_committed = await self._was_committed()
                    if is_committed:
                        return results
                    # The database went away and came back since it was used, and nothing was asked of it before.
                    if is_stale and not is_asked and is_committed is False:
                        was_open = False
                        continue
                return [self._address.explain_open(error)] * len(jobs)
            except Exception as error:  # of ours: the next batch is to have a clean connection
                await self._drop()
                return [error] * len(jobs)
        raise AssertionError  # the last try has returned

    async def _transaction(self, jobs: Sequence[Job[Any]], lease: str, results: list[Any]) -> None:
        exchange = await self._open()
        if await self._at_once(exchange, jobs, lease, results):
            return
        results.clear()
        state, was_kept, xid = await _known(exchange.connection, Needs.of(jobs), lease)
        results += apply(jobs, state)
        if state.is_changed:
            await self._send(exchange, [*writes(state, was_kept, lease), COMMIT], xid, state)
        else:
            await exchange.ask([ROLLBACK])

    async def _at_once(self, exchange: Exchange, jobs: Sequence[Job[Any]], lease: str, results: list[Any]) -> bool:
        """Without a question before. False: what is remembered is not enough, or was not so; nothing was written."""
        state = self._remembered.state(jobs)
        if state is None:
            return False
        results += apply(jobs, state)
        if any(isinstance(result, BaseException) for result in results):
            return False
        asked = self._remembered.premises(state, lease)
        asked += [(query, rows) for query, rows in writes(state, set(), lease) if query != schema.UPDATE_TIPS]
        try:
            await self._send(exchange, asked, "", state)
        except errors.DivisionByZero:
            self._sent = None
            self._remembered.forget()
            return False
        return True

    async def _send(self, exchange: Exchange, asked: list[Asked], xid: str, state: State) -> None:
        """xid: of the transaction that was begun; "": this is all of it."""
        self._sent = Sent(self._session, xid, state)
        if self._faults:
            self._faults.reach("before", state.points)
        await exchange.ask(asked)
        if self._faults:
            self._faults.reach("after", state.points)
        self._remembered.learn(state)
        self._tell([run_id for run_id, _ in state.changed_tips])

    async def _open(self) -> Exchange:
        if self._connection is not None and self._connection.closed:
            await self._drop()
        if self._connection is None:
            self._connection = await self._address.connect(patience_s=PATIENCE_S)
        if self._exchange is None or self._exchange.connection is not self._connection:
            await self._connection.execute(schema.PLANS)
            await self._connection.execute(schema.SYNCED)
            self._session = await outcome.session(self._connection)
            self._exchange = Exchange(self._connection)
        return self._exchange

    @property
    def _is_broken(self) -> bool:
        return self._connection is not None and self._connection.closed

    @property
    def _is_asked(self) -> bool:
        """Something of the batch was answered already."""
        return self._sent is not None and bool(self._sent.xid)

    async def _drop(self) -> None:
        connection, self._connection, self._exchange = self._connection, None, None
        self._remembered.forget()
        if connection is not None:
            await connection.close()

    async def _was_committed(self) -> bool | None:
        """None: the database does not say."""
        if self._sent is None:
            return False
        deadline = time.monotonic() + OUTCOME_S
        while time.monotonic() < deadline:
            try:
                async with await self._address.connect(patience_s=PATIENCE_S) as connection:
                    known = await outcome.was_committed(connection, self._sent)
                if known is not None:
                    return known
            except (psycopg.Error, PerdureError):
                pass  # asked again
            await asyncio.sleep(RETRY_S)
        return None


async def _known(connection: Connection, needs: Needs, lease: str) -> tuple[State, set[tuple[str, str]], str]:
    """What the database knows of what is needed, which of it was kept already, and the transaction's id. LeaseLost."""
    state = State()
    tips = list(needs.tips)
    async with connection.pipeline():
        await connection.execute("BEGIN")
        xid = await connection.execute("SELECT pg_current_xact_id()::text")
        if lease:
            leases = await connection.execute(schema.LEASE, {"server": lease})
        if needs.runs:
            where: dict[str, Any] = {"runs": list(needs.runs), "server": lease}
            runs = await connection.execute(schema.RUNS, where, binary=True)
        if needs.keys:
            keys = await connection.execute(schema.KEYS, {"keys": list(needs.keys)}, binary=True)
        if tips:
            where = {"runs": [run for run, _ in tips], "branches": [branch for _, branch in tips]}
            tip_rows = await connection.execute(schema.TIPS, where, binary=True)
        if needs.kept:
            where = {"kinds": [kind for kind, _ in needs.kept], "names": [name for _, name in needs.kept]}
            kept = await connection.execute(schema.KEPT, where, binary=True)
        if needs.sweep:
            sweep = await connection.execute(schema.SWEEP, binary=True)
        if needs.pruned:
            pruned = await connection.execute(schema.PRUNED, (list(needs.pruned),), binary=True)
        if needs.counted:
            counts = await connection.execute(schema.COUNTS, (needs.counted,), binary=True)
        if needs.shared:
            sharers = await connection.execute(schema.SHARERS, (needs.shared,), binary=True)
        if needs.fork:
            where = dict(zip(("run_id", "branch", "seq"), needs.fork, strict=True))
            fork = await connection.execute(schema.FORK, where, binary=True)
    if lease and not await leases.fetchall():
        hint = "It begins anew; ask again."
        raise LeaseLost(f"server {lease} has lost its lease: another one goes on with its runs", hint=hint)
    if needs.runs:
        state.runs = {run_id: RunRow(*row) for run_id, *row in await runs.fetchall()}
    if needs.keys:
        state.keys = dict(await keys.fetchall())
    if tips:
        state.tips = {(run_id, branch): (seq, digest) for run_id, branch, seq, digest in await tip_rows.fetchall()}
    if needs.kept:
        state.kept = {(kind, name): version for kind, name, version in await kept.fetchall()}
    if needs.sweep:
        [(state.sweep,)] = await sweep.fetchall()
    if needs.pruned:
        state.pruned = {run_id for (run_id,) in await pruned.fetchall()}
    if needs.counted:
        state.counts = dict(await counts.fetchall())
    if needs.shared:
        state.sharers = [run_id for (run_id,) in await sharers.fetchall()]
    if needs.fork:
        [(state.fork_hash, root, newest)] = await fork.fetchall()
        state.fork_root, state.newest_branch = root or "", newest or 0
    [(number,)] = await xid.fetchall()
    return state, set(state.kept), number
