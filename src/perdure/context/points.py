"""The names of all durable writes (``context.faults``), and what a server that dies there was doing.

A write has its name from what is written; here they are listed, so that one that does not exist can be refused, and so
that the crash matrix (``perdure.testing.crash``) has a row for each: it fails where a life writes at a point that is
not here, and where no life comes by one that is.
"""

from __future__ import annotations

POINTS = {
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
    "fork": "the program forks its run, and each fork has its number",
    "value": "the time, a random number or an id is drawn",
    "message": "the program keeps a message",
    "note": "the program read its messages",
    "snapshot": "a snapshot is bound to the log",
    "tagged": "tags are changed",
    "budget": "what a run may spend on models is changed",
    "secret.used": "the program asks a host with a secret",
    "ending": "a run is to end, and its program is to hear of it",
    "ending.told": "its program was told by what it asked",
    "forked": "another run goes on from here",
    "rewound": "a run is taken back",
    "diverged": "the program went another way than its log: the branch is forked",
    "overruled": "it did, and goes on live: what the log has of that call is void",
    "replayed": "the program was answered again from its log after a recovery",
    "row.run": "a new run's row",
    "row.summary": "the summary of a run is replaced",
    "row.branch": "a branch begins",
    "row.tip": "a branch has grown",
    "row.key": "a key is taken from the run that had it, for a new one",
    "row.spent": "what a turn has cost is added to what its run has spent",
    "row.blob": "a large value is kept",
    "row.tag": "a run is tagged",
    "row.queue": "a queue is made",
    "row.queue.dropped": "a queue is removed",
    "row.schedule": "a schedule is made",
    "row.schedule.dropped": "a schedule is removed",
    "row.fork": "runs are to be forked once, for a key",
    "row.hook": "somebody outside was told of a run, or is to be",
    "row.hook.dropped": "of the whole run",
    "row.pruned": "the log of a run that has ended is dropped",
    "row.sweep": "a sweep looks for large values that nothing refers to",
    "row.swept": "it removes some",
    "file.server.secret": "what machines' tokens are made with is written",
    "file.server.json": "the server says where it is",
}

# Of servers that share a database.
SHARED = {
    "row.line": "who is the next in a queue of several servers",
    "row.place": "a run leaves such a queue, and has a place among those that it lets run",
    "row.place.dropped": "it gives it up",
    "row.retention": "which of several servers sweeps today",
    "lease.begin": "the server takes a lease",
    "lease.beat": "it says that it lives",
    "lease.remove": "the lease of a server that was lost is removed",
    "lease.take": "a run of such a server is taken over",
}
EVERY = POINTS | SHARED
