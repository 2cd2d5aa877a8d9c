"""The rows of the matrix: every point (``perdure.context.faults``), and what a server that dies there was doing.

A test fails when a life writes at a point that has no row here, and when a row is of a point that no life comes by.
"""

from __future__ import annotations

ROWS = {
    "run.queued": "a run was asked for",
    "run.starting": "its machine is to be made",
    "run.running": "its machine runs, or its program goes on",
    "run.waiting": "its program waits",
    "run.suspending": "its machine is to be captured",
    "run.suspended": "its machine was captured, and is gone",
    "run.resuming": "its machine is to be restored",
    "run.recovering": "its machine was lost",
    "run.completed": "its program has a result",
    "run.failed": "its program has failed",
    "run.cancelled": "somebody ended it",
    "model.intent": "a model is to be asked",
    "model.started": "a provider is about to be asked",
    "model.committed": "a provider has answered",
    "model.aborted": "a provider refused, or broke off",
    "model.replayed": "a turn is answered again after a recovery",
    "step.intent": "an effect is about to happen",
    "step.result": "an effect has happened",
    "wait.started": "a wait begins",
    "wait.completed": "what was waited for has come",
    "signal": "somebody sent a signal",
    "emit": "the program said something",
    "message": "the program keeps a message",
    "note": "the program read its messages",
    "snapshot": "a snapshot is bound to the log",
    "ending": "a run is to end, and its program is to hear of it",
    "ending.told": "its program was told by what it asked",
    "forked": "another run goes on from here",
    "rewound": "a run is taken back",
    "diverged": "the program went another way than its log: the branch is forked",
    "row.run": "a new run's row",
    "row.summary": "the summary of a run is replaced",
    "row.branch": "a branch begins",
    "row.tip": "a branch has grown",
    "row.blob": "a large value is kept",
    "row.tag": "a run is tagged",
    "row.queue": "a queue is made",
    "row.queue.dropped": "a queue is removed",
    "row.schedule": "a schedule is made",
    "row.schedule.dropped": "a schedule is removed",
    "replayed": "the program was answered again from its log after a recovery",
    "file.server.secret": "what machines' tokens are made with is written",
    "file.server.json": "the server says where it is",
}

# Of servers that share a database.
LEASES = {
    "lease.begin": "the server takes a lease",
    "lease.beat": "it says that it lives",
    "lease.remove": "the lease of a server that was lost is removed",
    "lease.take": "a run of such a server is taken over",
}
AFTER_A_DEATH = ("lease.remove", "lease.take")  # the server that follows on a dead one comes by


def rows(database: str) -> dict[str, str]:
    """Those that the lives on a database have."""
    return ROWS | LEASES if database == "postgres" else ROWS
