"""The jobs of a context log: what a run is made, written, forked and branched off by, and what is kept beside. Pure.
``context.changes`` says what becomes of them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from perdure.context.changes import Needs, RunRow, State
from perdure.context.log import ROOT_BRANCH, Beside, Head, Kept, NewEntry, NewHead, digest_of
from perdure.context.rows import blob_row
from perdure.context.values import BLOB_MAX_BYTES, Blobs, check_size, encode, packed, plain
from perdure.errors import Conflict, InvalidValue, LogConflict, NotFound
from perdure.formats.chain import root_hash
from perdure.model import Entry

BRIEF_BYTES, BRIEF_ENTRIES = 16 << 10, 16


class Packed:
    """Entries made ready outside the writer: only inserting is left."""

    def __init__(
        self,
        new_entries: Sequence[NewEntry],
        head: NewHead | None,
        beside: Sequence[Beside] = (),
        contents: Sequence[bytes] = (),
    ) -> None:
        blobs: Blobs = {}
        for content in contents:
            check_size(len(content), BLOB_MAX_BYTES, "blob")
            blobs[digest_of(content)] = content
        self.entries = new_entries
        self.payloads = []
        for new in new_entries:
            plain(new.kind, "kind of an entry")
            plain(new.key or "", "key of an entry")
            self.payloads.append(packed(new.payload, f"payload of an entry {new.kind}", blobs))
        self.blobs = {(row := blob_row(digest, content))[0]: row for digest, content in blobs.items()}
        self.head = head
        self.value = encode(head.value, "summary of a run") if head else b""
        self.beside: list[Keep | Drop] = [
            Drop(one.kind, one.name) if one.value is None else Keep(one.kind, one.name, one.value, one.expected_version)
            for one in beside
        ]

    @property
    def size_bytes(self) -> int:
        kept = (job.content for job in self.beside if isinstance(job, Keep))
        return sum(map(len, (self.value, *self.payloads, *(row[2] for row in self.blobs.values()), *kept)))

    def needs(self, needs: Needs) -> None:
        for job in self.beside:
            job.needs(needs)

    def check(self, run_id: str, run: RunRow, state: State) -> None:
        for job in self.beside:
            job.check(state)
        if self.head and self.head.expected_version != run.version:
            message = f"run {run_id}: its state was changed meanwhile (version {run.version})"
            raise LogConflict(message, version=run.version)


class Create:
    """A new run; or the id of the older one that has the key."""

    alone = False
    is_brief = False

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

    @property
    def is_brief(self) -> bool:
        return len(self.packed.entries) <= BRIEF_ENTRIES and self.packed.size_bytes <= BRIEF_BYTES

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
    is_brief = False

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
    is_brief = False

    def __init__(
        self,
        run_id: str,
        value: Any,
        packed: Packed,
        *,
        parent_run: str,
        parent: int,
        fork_seq: int,
        epoch: int,
        key: str | None = None,
    ) -> None:
        self.run_id, self.packed = plain(run_id, "id of a run"), _begun(run_id, packed)
        self.key = key
        self.value, self.content = value, encode(value, "summary of a run")
        self.parent_run, self.parent = plain(parent_run, "id of a run"), parent
        self.fork_seq, self.epoch = fork_seq, epoch
        self.created = time.time()

    def needs(self, needs: Needs) -> None:
        needs.runs |= {self.run_id, self.parent_run}
        if self.key is not None:
            needs.keys.add(self.key)
        needs.tips.add((self.parent_run, self.parent))
        needs.fork = self.parent_run, self.parent, self.fork_seq

    def apply(self, state: State) -> Head:
        state.run(self.parent_run)
        if self.key in state.keys:
            raise Conflict(f"there is a run with the key {self.key} already")
        before = state.fork_at(self.parent_run, self.parent, self.fork_seq)
        state.add_run(self.run_id, self.key, self.created, self.epoch, self.value, self.content)
        state.add_branch(self.run_id, ROOT_BRANCH, self.parent, self.fork_seq, before, self.parent_run)
        written = state.write(self.run_id, ROOT_BRANCH, self.epoch, self.packed)
        return new_head(self.run_id, self.key, self.created, self.epoch, written[-1].seq, self.value)


class Keep:
    """What the log's owner keeps beside the runs, by kind and name."""

    alone = False
    is_brief = False

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
    is_brief = False

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
    is_brief = False

    def __init__(self, content: bytes) -> None:
        check_size(len(content), BLOB_MAX_BYTES, "blob")
        self.digest = digest_of(content)
        self.row = blob_row(self.digest, content)

    def needs(self, needs: Needs) -> None:
        pass

    def apply(self, state: State) -> str:
        state.blobs[self.row[0]] = self.row
        return self.digest
