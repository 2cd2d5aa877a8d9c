"""What became of a transaction whose commit nobody answered.

PostgreSQL says by its number whether it was committed. But it gives a number again where a crash lost all that the
first one with it had written, and then speaks of another transaction, maybe another server's. So what was written is
looked for, too.

Where a transaction's number was not asked for, its session is looked for. Once that is not there any more, nothing can
come of it that is not there yet.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from perdure.context.changes import State
from perdure.context.postgres.connections import Connection

SESSION = "SELECT pid, backend_start::text FROM pg_stat_activity WHERE pid = pg_backend_pid()"
# One that does nothing may have something to read yet, sent before the connection broke: it is ended.
IS_THERE = """
SELECT CASE WHEN state = 'idle' THEN pg_terminate_backend(pid) ELSE TRUE END FROM pg_stat_activity
WHERE pid = %s AND backend_start = %s::timestamptz
"""
STATUS = "SELECT pg_xact_status(%s::xid8)"
ENTRY = "SELECT EXISTS (SELECT FROM entries WHERE run_id = %s AND branch = %s AND seq = %s AND hash = %s)"
BRANCH = "SELECT EXISTS (SELECT FROM branches WHERE run_id = %s AND branch = %s)"
RUN = "SELECT EXISTS (SELECT FROM runs WHERE run_id = %s)"
# A later version is what somebody made of ours.
SUMMARY = (
    "SELECT version > %(version)s OR (version = %(version)s AND value = %(value)s) FROM runs WHERE run_id = %(run)s"
)
KEPT = """
SELECT version > %(version)s OR (version = %(version)s AND value = %(value)s) FROM kept
WHERE kind = %(kind)s AND name = %(name)s
"""
DROPPED = "SELECT NOT EXISTS (SELECT FROM kept WHERE kind = %s AND name = %s)"
BLOB = "SELECT EXISTS (SELECT FROM blobs WHERE digest = %s)"


class Session(NamedTuple):
    """A connection, as the server knows it: one process, of that number at that time."""

    pid: int
    begun: str


NO_SESSION = Session(0, "")


class Sent(NamedTuple):
    """A commit that is on its way."""

    session: Session
    xid: str  # the transaction's number; "": it was not asked for, and there are entries in it
    state: State  # all of it


async def session(connection: Connection) -> Session:
    [row] = await (await connection.execute(SESSION)).fetchall()
    return Session(*row)


async def was_committed(connection: Connection, sent: Sent) -> bool | None:
    """None: it is in progress yet."""
    if sent.xid:
        status = await _one(connection, STATUS, (sent.xid,))
        if status == "in progress":
            return None
        if status != "committed":
            return False
    elif await _one(connection, IS_THERE, sent.session) is not None:
        return None
    found = _evidence(sent.state)
    return found is None or bool(await _one(connection, *found))


def _evidence(state: State) -> tuple[str, Any] | None:
    """A question that is answered with true where the transaction is there: about the surest thing it wrote. None: it
    only removed what nobody needs, and whoever asks for that again does no harm."""
    if state.entries:
        run_id, branch, seq, *_, digest = state.entries[-1]
        return ENTRY, (run_id, branch, seq, digest)
    if state.new_branches:
        return BRANCH, state.new_branches[-1][:2]
    if state.new_runs:
        return RUN, (next(iter(state.new_runs)),)
    for run_id in state.changed_runs:
        row = state.runs[run_id]
        if row.listed is not None:
            return SUMMARY, {"run": run_id, "version": row.version, "value": row.value}
    for (kind, name), value in state.keeps.items():
        if value is None:
            return DROPPED, (kind, name)
        return KEPT, {"kind": kind, "name": name, "version": state.kept[kind, name], "value": value}
    if state.blobs:
        return BLOB, (next(iter(state.blobs)),)
    return None


async def _one(connection: Connection, query: str, values: Any) -> Any:
    row = await (await connection.execute(query, values)).fetchone()
    return None if row is None else row[0]
