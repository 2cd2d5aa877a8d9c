"""What the writes of a batch change: known first, changed here, then written by the database in one transaction. Pure.

A ``Job`` is one write that somebody waits for. The database asks all jobs of a batch what they need to know, reads that
(and on a server locks it), applies them in order and writes what came of it. A job that is refused has changed nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from perdure.context.listing import Listed, listed, tags
from perdure.context.log import ROOT_BRANCH
from perdure.context.rows import as_entry, no_run
from perdure.context.spending import ENDS, Spending
from perdure.errors import Conflict, InvalidValue, LeaseLost, NotFound, ProtocolError, StaleEpoch
from perdure.formats.chain import entry_hash, root_hash
from perdure.model import Entry

if TYPE_CHECKING:
    from perdure.context.jobs import Packed

Result = TypeVar("Result", covariant=True)


@dataclass
class Needs:
    """What must be known of the database before a batch is applied."""

    runs: set[str] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)
    tips: set[tuple[str, int | None]] = field(default_factory=set)  # (run, branch; None: its current one)
    fork: tuple[str, int, int] | None = None  # (run, branch, seq): see State.fork_hash and so on
    kept: set[tuple[str, str]] = field(default_factory=set)
    shared: str | None = None  # a run: who shares its entries
    sweep: bool = False
    pruned: set[str] = field(default_factory=set)  # runs: whether they were pruned
    counted: str | None = None  # a run: how many entries are stored under each of its branches

    @staticmethod
    def of(jobs: Iterable[Job[Any]]) -> Needs:
        needs = Needs()
        for job in jobs:
            job.needs(needs)
        return needs


@dataclass
class RunRow:
    """A run as it is in the database, and then as the batch leaves it."""

    epoch: int
    branch: int
    version: int
    is_ours: bool = True  # False: another server owns it (``context.leases``)
    value: bytes | None = None  # None: as it was
    listed: Listed | None = None

    def replace(self, value: Any, content: bytes) -> None:
        """Its summary; content: that as JSON."""
        self.value, self.version, self.listed = content, self.version + 1, listed(value)

    def fence(self, run_id: str, epoch: int | None) -> int:
        """The epoch to write in."""
        if not self.is_ours:
            raise LeaseLost(f"run {run_id} was taken over by another server", hint="Ask that one.")
        if epoch is not None and epoch < self.epoch:
            hint = "Another machine goes on with this run; this one is to end."
            raise StaleEpoch(
                f"run {run_id} is in epoch {self.epoch}, not {epoch} any more", hint=hint, epoch=self.epoch
            )
        return self.epoch if epoch is None else epoch


TAGGED = "tagged"  # the kind of entry beside a summary with other tags


class Turns:
    """How many entries of a branch are of a turn, by the two kinds that lists of runs tell of."""

    __slots__ = ("asked", "replayed")

    def __init__(self) -> None:
        self.asked = self.replayed = 0

    def count(self, kind: str) -> None:
        self.asked += kind == "model.started"
        self.replayed += kind == "model.replayed"


@dataclass
class State:
    """What is known, as the jobs before left it, and the rows to write."""

    runs: dict[str, RunRow] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)  # idempotency key -> run
    tips: dict[tuple[str, int], tuple[int, bytes]] = field(default_factory=dict)  # (run, branch) -> last seq and hash
    fork_hash: bytes | None = None  # of the entry that a fork is at
    fork_root: str = ""  # the run that its chain begins in
    newest_branch: int = ROOT_BRANCH  # of the run that is forked
    kept: dict[tuple[str, str], int] = field(default_factory=dict)  # (kind, name) -> version

    sharers: list[str] = field(default_factory=list)  # runs
    sweep: int = 0  # how often blobs were swept
    pruned: set[str] = field(default_factory=set)  # of the runs that were asked for
    counts: dict[int, int] = field(default_factory=dict)  # branch -> entries, of the run that was asked for

    released_keys: set[str] = field(default_factory=set)  # of runs
    new_runs: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    new_tags: list[tuple[str, str, str]] = field(default_factory=list)
    retagged: set[str] = field(default_factory=set)  # runs that lose the tags that they had
    changed_runs: set[str] = field(default_factory=set)
    new_branches: list[tuple[Any, ...]] = field(default_factory=list)
    changed_tips: set[tuple[str, int]] = field(default_factory=set)
    turns: dict[tuple[str, int], Turns] = field(default_factory=dict)  # of changed tips: how many more
    spent: dict[str, Spending] = field(default_factory=dict)  # by run: how much more
    joint: dict[tuple[str, str], Spending] = field(default_factory=dict)  # (budget, period): the same
    entries: list[tuple[Any, ...]] = field(default_factory=list)
    blobs: dict[bytes, tuple[Any, ...]] = field(default_factory=dict)
    keeps: dict[tuple[str, str], bytes | None] = field(default_factory=dict)  # None: dropped
    dropped_logs: set[str] = field(default_factory=set)  # of runs
    restored_logs: set[str] = field(default_factory=set)  # of runs whose logs had been dropped
    cleared: list[tuple[str, int, int]] = field(default_factory=list)  # (run, branch, last seq): entries up to there go
    dropped_kinds: set[str] = field(default_factory=set)  # of what is kept, with a log
    removed_blobs: list[tuple[bytes, int]] = field(default_factory=list)  # unless its sweep is this one or a later one
    is_sweep: bool = False  # ``sweep`` was counted up

    @property
    def is_changed(self) -> bool:
        written = (self.entries, self.changed_runs, self.blobs, self.new_runs, self.keeps, self.released_keys)
        return any(written) or bool(self.dropped_logs or self.cleared or self.removed_blobs or self.is_sweep)

    @property
    def points(self) -> set[str]:
        """The names of what is written (``context.faults``): kinds of entries, and the rows beside them."""
        rows = {
            "row.run": self.new_runs,
            "row.summary": self.changed_runs,
            "row.key": self.released_keys,
            "row.tag": self.new_tags or self.retagged,
            "row.branch": self.new_branches,
            "row.tip": self.changed_tips,
            "row.spent": self.spent,
            "row.blob": self.blobs,
            "row.pruned": self.dropped_logs or self.cleared,
            "row.swept": self.removed_blobs,
            "row.sweep": self.is_sweep,
        }
        kept = {
            f"row.{kind.partition(':')[0]}" + (".dropped" if value is None else "")
            for (kind, _), value in self.keeps.items()
        }
        return {entry[5] for entry in self.entries} | {name for name, written in rows.items() if written} | kept

    def run(self, run_id: str) -> RunRow:
        if run_id not in self.runs:
            raise no_run(run_id)
        return self.runs[run_id]

    def tip(self, run_id: str, branch: int) -> tuple[int, bytes]:
        if (run_id, branch) not in self.tips:
            raise NotFound(f"run {run_id} has no branch {branch}")
        return self.tips[run_id, branch]

    def add_run(self, run_id: str, key: str | None, created: float, epoch: int, value: Any, content: bytes) -> None:
        """content: the value's JSON."""
        if run_id in self.runs:
            raise Conflict(f"there is a run {run_id} already")
        self.new_runs[run_id] = (run_id, key, created, epoch, ROOT_BRANCH, 1, content, *listed(value))
        self.new_tags += [(run_id, name, what) for name, what in tags(value).items()]
        self.runs[run_id] = RunRow(epoch=epoch, branch=ROOT_BRANCH, version=1)
        if key is not None:
            self.keys[key] = run_id

    def release_key(self, run_id: str) -> None:
        if run_id in self.new_runs:
            row = self.new_runs[run_id]
            self.new_runs[run_id] = (row[0], None, *row[2:])
        else:
            self.released_keys.add(run_id)

    def add_branch(
        self, run_id: str, branch: int, parent: int | None, fork_seq: int, before: bytes, parent_run: str | None = None
    ) -> None:
        self.new_branches.append((run_id, branch, parent, fork_seq, fork_seq, before, parent_run, 0, 0))
        self.tips[run_id, branch] = fork_seq, before

    def fork_at(self, run_id: str, branch: int, seq: int) -> bytes:
        """The hash that a fork there goes on from."""
        last, _ = self.tip(run_id, branch)
        if not 0 <= seq <= last:
            raise InvalidValue(f"run {run_id}, branch {branch}: no fork at {seq}, it has 1 to {last}")
        if not seq:
            return root_hash(self.fork_root)
        if self.fork_hash is None:
            raise ProtocolError(f"run {run_id}, branch {branch}: entry {seq} is missing")
        return self.fork_hash

    def _jointly(self, of: tuple[str, str]) -> Spending:
        return self.joint.setdefault(of, Spending())

    def write(self, run_id: str, branch: int, epoch: int, packed: Packed) -> list[Entry]:
        """Append to a branch; whether that is allowed was seen before."""
        run, (seq, before) = self.runs[run_id], self.tips[run_id, branch]
        if packed.head:
            run.replace(packed.head.value, packed.value)
        if packed.head or epoch != run.epoch:
            run.epoch = epoch
            self.changed_runs.add(run_id)
        if packed.head and any(new.kind == TAGGED for new in packed.entries):
            self.retagged.add(run_id)
            others = [row for row in self.new_tags if row[0] != run_id]
            self.new_tags = others + [(run_id, name, what) for name, what in tags(packed.head.value).items()]
        self.blobs.update(packed.blobs)
        for job in packed.beside:
            job.apply(self)
        now = time.time()
        written, turns = [], self.turns.setdefault((run_id, branch), Turns())
        for new, payload in zip(packed.entries, packed.payloads, strict=True):
            seq += 1
            facts = (run_id, branch, seq, epoch, now, new.kind, new.key, payload)
            before = entry_hash(before, facts)
            row = (*facts, before)
            self.entries.append(row)
            turns.count(new.kind)
            if new.kind in ENDS and not new.is_copy:
                for spent in (self.spent.setdefault(run_id, Spending()), *map(self._jointly, new.joint)):
                    spent.count(new.kind, new.payload)
            written.append(as_entry(row, new.payload))
        if written:
            self.tips[run_id, branch] = seq, before
            self.changed_tips.add((run_id, branch))
        return written


class Job(Protocol[Result]):
    """One write."""

    alone: bool  # it needs to know what a batch could not: it is one by itself

    @property
    def is_brief(self) -> bool:
        """It writes a few rows: what is waited for is the disk alone."""
        ...

    def needs(self, needs: Needs) -> None: ...

    def apply(self, state: State) -> Result:
        """Change ``state``, or raise a ``PerdureError`` and leave it as it is. May be asked again, with what is known
        by then."""
        ...


def apply(jobs: Sequence[Job[Any]], state: State) -> list[Any]:
    """One result or error per job."""
    results: list[Any] = []
    for job in jobs:
        try:
            results.append(job.apply(state))
        except Exception as error:  # of this job alone
            results.append(error)
    return results
