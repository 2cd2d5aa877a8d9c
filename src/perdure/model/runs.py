"""Runs, the entries of their logs, and what they print."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from perdure.model.nodes import NodePlace
from perdure.model.snapshots import SnapshotInfo
from perdure.model.spending import Budget, Spent
from perdure.model.values import Frozen


class RunState(StrEnum):
    """States of a run; the arrows are in ``runs.states``."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    WAITING = "waiting"
    SUSPENDING = "suspending"
    SUSPENDED = "suspended"
    RESUMING = "resuming"
    RECOVERING = "recovering"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Entry(Frozen, frozen=True, kw_only=True):
    """One entry of a context log. ``hash`` chains over the entry before (see docs/formats/context-log.md)."""

    run_id: str
    branch: int
    seq: int  # dense, from 1, along the branch
    epoch: int
    time: float
    kind: str
    key: str | None = None  # of the call that it belongs to: "LANE/ORDINAL"
    payload: Any = None  # canonical JSON value
    hash: str = ""


class OutputPiece(Frozen, frozen=True, kw_only=True):
    """A part of what a run's program wrote, in the order in which it came."""

    life: str  # of which log of it: another one begins at offset 0
    offset: int  # of its first byte in that log, stdout and stderr together
    stream: str  # stdout, stderr
    at: int  # of its first byte in what the process itself wrote to that stream; a restored machine goes back in it
    data: bytes

    @property
    def end(self) -> int:
        """The offset of the next byte."""
        return self.offset + len(self.data)


class RunOrigin(Frozen, frozen=True, kw_only=True):
    """Where a fork left another run."""

    run_id: str
    branch: int
    seq: int  # the last entry that both have


class RunInfo(Frozen, frozen=True, kw_only=True):
    """A run, as ``perdure status RUN`` and the API show it."""

    id: str
    state: RunState
    agent: str  # FILE:FUNCTION or the command
    created: float
    epoch: int = 0
    branch: int = 0
    image: str = ""
    durability: str = "snapshot"  # or "replay": a worker process, and no machine
    sandbox_id: str = ""
    node: NodePlace | None = None  # where that is
    input: Any = None
    result: Any = None
    error: dict[str, Any] | None = None
    seq: int = 0
    waits: list[dict[str, Any]] = []  # open waits: {id, kind, name, since, until, show}
    snapshot: SnapshotInfo | None = None
    turns_asked: int = 0  # model calls that a provider was asked
    turns_replayed: int = 0  # model calls answered again from the log
    spent: Spent = Spent()
    budget: Budget = Budget()
    recoveries: int = 0
    attempt: int = 1
    key: str | None = None
    queue: str | None = None
    tags: dict[str, str] = {}
    metadata: Any = None
    policy: dict[str, Any] = {}  # when its machine sleeps and is captured (docs/design/0024-programs-and-policy.md)
    wall_s: float = 0.0  # since it was created, until its end; 0: nobody wrote down when that was
    suspends: int = 0
    suspended_s: float = 0.0  # how long it had no machine, as that slept
    suspended_thinking_s: float = 0.0  # of these: while a model thought; the rest it waited
    spared_memory_gib_s: float = 0.0  # GiB of memory that its machine may have, times the seconds that it slept
    stored_bytes: int = 0  # by all its snapshots together
    # Those that it can go on from: {digest, branch, seq, at, stored_bytes, keep, node, store}.
    snapshots: list[dict[str, Any]] = []
    name: str = ""
    origin: RunOrigin | None = None  # of a fork
    parent: str = ""  # the run that started it
    children: list[str] = []  # runs that it started, oldest first
    ending: dict[str, Any] | None = None  # it is to end and cleans up: {to, error, until, told}


class Signalled(RunInfo, frozen=True, kw_only=True):
    """A run after it was sent a signal, and what became of that: a wait of it has ``taken`` it, it is ``kept`` for a
    later one, or it is a ``duplicate``: the run has had one with its id."""

    outcome: Literal["taken", "kept", "duplicate"]
    wait_id: str = ""  # of the one that took it
