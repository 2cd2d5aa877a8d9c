"""What became of a transaction whose commit nobody answered.

PostgreSQL says by its number whether it was committed. But it gives a number again where a crash lost all that the
first one with it had written, and then speaks of another transaction, maybe another server's. So what was written is
looked for, too.
"""

from __future__ import annotations

from typing import Any

from perdure.context.changes import State
from perdure.context.postgres.connections import Connection

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


async def was_committed(connection: Connection, xid: str, state: State) -> bool | None:
    """None: it is in progress yet."""
    status = await _one(connection, STATUS, (xid,))
    if status == "in progress":
        return None
    if status != "committed":
        return False
    found = _evidence(state)
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
