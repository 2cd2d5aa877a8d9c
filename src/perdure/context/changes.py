"""What the writes of a batch change: known first, changed here, then written by the database in one transaction. Pure.

A ``Job`` is one write that somebody waits for. The database asks all jobs of a batch what they need to know, reads that
(and on a server locks it), applies them in order and writes what came of it. A job that is refused has changed nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from perdure.context.listing import Listed, listed, tags
from perdure.context.log import ROOT_BRANCH, Beside, Head, Kept, NewEntry, NewHead, digest_of
from perdure.context.rows import as_entry, blob_row, no_run
from perdure.context.values import BLOB_MAX_BYTES, PAYLOAD_MAX_BYTES, Blobs, check_size, encode, pack, plain
from perdure.errors import Conflict, InvalidValue, LeaseLost, LogConflict, NotFound, ProtocolError, StaleEpoch
from perdure.formats.chain import entry_hash, root_hash
from perdure.model import Entry

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

    released_keys: set[str] = field(default_factory=set)  # of runs
    new_runs: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    new_tags: list[tuple[str, str, str]] = field(default_factory=list)
    retagged: set[str] = field(default_factory=set)  # runs that lose the tags that they had
    changed_runs: set[str] = field(default_factory=set)
    new_branches: list[tuple[Any, ...]] = field(default_factory=list)
    changed_tips: set[tuple[str, int]] = field(default_factory=set)
    turns: dict[tuple[str, int], Turns] = field(default_factory=dict)  # of changed tips: how many more
    entries: list[tuple[Any, ...]] = field(default_factory=list)
    blobs: dict[bytes, tuple[Any, ...]] = field(default_factory=dict)
    keeps: dict[tuple[str, str], bytes | None] = field(default_factory=dict)  # None: dropped
    dropped_logs: set[str] = field(default_factory=set)  # of runs
    removed_blobs: list[tuple[bytes, int]] = field(default_factory=list)  # unless its sweep is this one or a later one
    is_sweep: bool = False  # ``sweep`` was counted up

    @property
    def is_changed(self) -> bool:
        written = (self.entries, self.changed_runs, self.blobs, self.new_runs, self.keeps, self.released_keys)
        return any(written) or bool(self.dropped_logs or self.removed_blobs or self.is_sweep)

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
            "row.blob": self.blobs,
            "row.pruned": self.dropped_logs,
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

    def write(self, run_id: str, branch: int, epoch: int, packed: Packed) -> list[Entry]:
        """Append to a branch; whether that is allowed was seen before."""
        run, (seq, before) = self.runs[run_id], self.tips[run_id, branch]
        if packed.head:
            run.value, run.version = packed.value, run.version + 1
            run.listed = listed(packed.head.value)
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
            written.append(as_entry(row, new.payload))
        if written:
            self.tips[run_id, branch] = seq, before
            self.changed_tips.add((run_id, branch))
        return written


class Job(Protocol[Result]):
    """One write."""

    alone: bool  # it needs to know what a batch could not: it is one by itself

    def needs(self, needs: Needs) -> None: ...

    def apply(self, state: State) -> Result:
        """Change ``state``, or raise a ``PerdureError`` and leave it as it is. May be asked again, with what is known
        by then."""
        ...


class Packed:
    """Entries made ready outside the writer: only inserting is left."""

    def __init__(self, new_entries: Sequence[NewEntry], head: NewHead | None, beside: Sequence[Beside] = ()) -> None:
        blobs: Blobs = {}
        self.entries = new_entries
        self.payloads = []
        for new in new_entries:
            plain(new.kind, "kind of an entry")
            plain(new.key or "", "key of an entry")
            self.payloads.append(pack_payload(new, blobs))
        self.blobs = {row[0]: row for row in (blob_row(digest, content) for digest, content in blobs.items())}
        self.head = head
        self.value = encode(head.value, "summary of a run") if head else b""
        self.beside: list[Keep | Drop] = [
            Drop(one.kind, one.name) if one.value is None else Keep(one.kind, one.name, one.value, one.expected_version)
            for one in beside
        ]

    def needs(self, needs: Needs) -> None:
        for job in self.beside:
            job.needs(needs)

    def check(self, run_id: str, run: RunRow, state: State) -> None:
        for job in self.beside:
            job.check(state)
        if self.head and self.head.expected_version != run.version:
            message = f"run {run_id}: its state was changed meanwhile (version {run.version})"
            raise LogConflict(message, version=run.version)


def pack_payload(new: NewEntry, blobs: Blobs) -> bytes:
    return encode(pack(new.payload, blobs), f"payload of an entry {new.kind}", PAYLOAD_MAX_BYTES)


class Create:
    """A new run; or the id of the older one that has the key."""

    alone = False

    def __init__(self, run_id: str, value: Any, key: str | None, replacing: str | None) -> None:
        self.run_id, self.key, self.replacing = plain(run_id, "id of a run"), key, replacing
        plain(key or "", "key of a run")
        self.value, self.content = value, encode(value, "summary of a run")
        self.created = time.time()

    def needs(self, needs: Needs) -> None:
        needs.runs.add(self.run_id)
        if self.key is not None:
            needs.keys.add(self.key)

    def apply(self, state: State) -> Head | str:
        older = state.keys.get(self.key) if self.key is not None else None
        if older is not None and older != self.replacing:
            return older
        state.add_run(self.run_id, self.key, self.created, 0, self.value, self.content)
        if older is not None:
            state.release_key(older)
        state.add_branch(self.run_id, ROOT_BRANCH, None, 0, root_hash(self.run_id))
        return new_head(self.run_id, self.key, self.created, 0, 0, self.value)


def new_head(run_id: str, key: str | None, created: float, epoch: int, seq: int, value: Any) -> Head:
    return Head(
        run_id=run_id, key=key, created=created, epoch=epoch, branch=ROOT_BRANCH, seq=seq, version=1, value=value
    )


class Append:
    alone = False

    def __init__(
        self, run_id: str, packed: Packed, *, epoch: int | None, branch: int | None, expected_seq: int | None
    ) -> None:
        self.run_id, self.packed = plain(run_id, "id of a run"), packed
        self.epoch, self.branch, self.expected_seq = epoch, branch, expected_seq

    def needs(self, needs: Needs) -> None:
        needs.runs.add(self.run_id)
        needs.tips.add((self.run_id, self.branch))
        self.packed.needs(needs)

    def apply(self, state: State) -> list[Entry]:
        run = state.run(self.run_id)
        epoch = run.fence(self.run_id, self.epoch)
        branch = run.branch if self.branch is None else self.branch
        seq, _ = state.tip(self.run_id, branch)
        if self.expected_seq is not None and seq != self.expected_seq:
            message = (
                f"run {self.run_id}, branch {branch}: expected to append after {self.expected_seq}, it is at {seq}"
            )
            raise LogConflict(message, seq=seq)
        self.packed.check(self.run_id, run, state)
        return state.write(self.run_id, branch, epoch, self.packed)


def _begun(run_id: str, packed: Packed) -> Packed:
    if not packed.entries:
        raise InvalidValue(f"run {run_id}: a branch begins with at least one entry")
    return packed


class Fork:
    alone = True  # the entry that it forks at may not be in the batch

    def __init__(self, run_id: str, packed: Packed, *, epoch: int | None, parent: int, fork_seq: int) -> None:
        self.run_id, self.packed = plain(run_id, "id of a run"), _begun(run_id, packed)
        self.epoch, self.parent, self.fork_seq = epoch, parent, fork_seq

    def needs(self, needs: Needs) -> None:
        needs.runs.add(self.run_id)
        needs.tips.add((self.run_id, self.parent))
        needs.fork = self.run_id, self.parent, self.fork_seq
        self.packed.needs(needs)

    def apply(self, state: State) -> list[Entry]:
        run = state.run(self.run_id)
        epoch = run.fence(self.run_id, self.epoch)
        before = state.fork_at(self.run_id, self.parent, self.fork_seq)
        self.packed.check(self.run_id, run, state)
        run.branch = state.newest_branch + 1
        state.changed_runs.add(self.run_id)
        state.add_branch(self.run_id, run.branch, self.parent, self.fork_seq, before)
        return state.write(self.run_id, run.branch, epoch, self.packed)


class BranchOff:
    """A new run that shares the entries of a branch of another one."""

    alone = True

    def __init__(
        self, run_id: str, value: Any, packed: Packed, *, parent_run: str, parent: int, fork_seq: int, epoch: int
    ) -> None:
        self.run_id, self.packed = plain(run_id, "id of a run"), _begun(run_id, packed)
        self.value, self.content = value, encode(value, "summary of a run")
        self.parent_run, self.parent = plain(parent_run, "id of a run"), parent
        self.fork_seq, self.epoch = fork_seq, epoch
        self.created = time.time()

    def needs(self, needs: Needs) -> None:
        needs.runs |= {self.run_id, self.parent_run}
        needs.tips.add((self.parent_run, self.parent))
        needs.fork = self.parent_run, self.parent, self.fork_seq

    def apply(self, state: State) -> Head:
        state.run(self.parent_run)
        before = state.fork_at(self.parent_run, self.parent, self.fork_seq)
        state.add_run(self.run_id, None, self.created, self.epoch, self.value, self.content)
        state.add_branch(self.run_id, ROOT_BRANCH, self.parent, self.fork_seq, before, self.parent_run)
        written = state.write(self.run_id, ROOT_BRANCH, self.epoch, self.packed)
        return new_head(self.run_id, None, self.created, self.epoch, written[-1].seq, self.value)


class Keep:
    """What the log's owner keeps beside the runs, by kind and name."""

    alone = False

    def __init__(self, kind: str, name: str, value: Any, expected_version: int | None) -> None:
        self.kind, self.name = plain(kind, "kind"), plain(name, f"name of a {kind}")
        self.value, self.content = value, encode(value, f"{kind} {name}")
        self.expected_version = expected_version

    def needs(self, needs: Needs) -> None:
        needs.kept.add((self.kind, self.name))

    def check(self, state: State) -> int:
        """The version that is there (0: none), or why this is refused."""
        kind, name, expected = self.kind, self.name, self.expected_version
        found = state.kept.get((kind, name))
        if found is not None and expected == 0:
            raise Conflict(f"there is a {kind} {name} already", hint=f"`perdure {kind} ls` lists them.")
        if found is None and expected:
            raise NotFound(f"no such {kind}: {name}")
        if found is not None and expected not in (None, found):
            raise LogConflict(f"the {kind} {name} was changed meanwhile (version {found})", version=found)
        return found or 0

    def apply(self, state: State) -> Kept:
        version = state.kept[self.kind, self.name] = self.check(state) + 1
        state.keeps[self.kind, self.name] = self.content
        return Kept(kind=self.kind, name=self.name, version=version, value=self.value)


class Drop:
    """It is kept no more; whether it was there."""

    alone = False

    def __init__(self, kind: str, name: str) -> None:
        self.kind, self.name = plain(kind, "kind"), plain(name, f"name of a {kind}")

    def needs(self, needs: Needs) -> None:
        needs.kept.add((self.kind, self.name))

    def check(self, state: State) -> None:
        """Nothing is in its way."""

    def apply(self, state: State) -> bool:
        if state.kept.pop((self.kind, self.name), None) is None:
            return False
        state.keeps[self.kind, self.name] = None
        return True


class PutBlob:
    alone = False

    def __init__(self, content: bytes) -> None:
        check_size(len(content), BLOB_MAX_BYTES, "blob")
        self.digest = digest_of(content)
        self.row = blob_row(self.digest, content)

    def needs(self, needs: Needs) -> None:
        pass

    def apply(self, state: State) -> str:
        state.blobs[self.row[0]] = self.row
        return self.digest


def apply(jobs: Sequence[Job[Any]], state: State) -> list[Any]:
    """One result or error per job."""
    results: list[Any] = []
    for job in jobs:
        try:
            results.append(job.apply(state))
        except Exception as error:  # of this job alone
            results.append(error)
    return results
