"""Appending to one run: what is made ready before, and what is done in the writer's thread."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from typing import Any

from perdure.context import schema
from perdure.context.chain import entry_hash, root_hash
from perdure.context.log import ROOT_BRANCH, NewEntry, NewHead, canonical
from perdure.context.rows import as_entry, blob_row, no_run
from perdure.context.values import Blobs, pack
from perdure.errors import InvalidValue, LogConflict, NotFound, StaleEpoch
from perdure.model import Entry


class Packed:
    """Entries made ready outside the writer's thread: only inserting is left."""

    def __init__(self, new_entries: Sequence[NewEntry], head: NewHead | None) -> None:
        blobs: Blobs = {}
        self.entries = new_entries
        self.payloads = [canonical(pack(new.payload, blobs)) for new in new_entries]
        self.blobs = [blob_row(digest, content) for digest, content in blobs.items()]
        self.head = head
        self.value = canonical(head.value) if head else b""


class Tip:
    """Where the next entry of a run goes; lives for one job of the writer."""

    def __init__(self, db: sqlite3.Connection, run_id: str, row: tuple[Any, ...]) -> None:
        self.db, self.run_id = db, run_id
        self.epoch, self.branch, self.version = row
        self.seq, self.hash = 0, b""

    @staticmethod
    def fenced(db: sqlite3.Connection, run_id: str, epoch: int | None) -> Tip:
        row = db.execute("SELECT epoch, branch, version FROM runs WHERE run_id = ?", (run_id,)).fetchone()
        if row is None:
            raise no_run(run_id)
        tip = Tip(db, run_id, row)
        if epoch is not None and epoch < tip.epoch:
            hint = "Another machine goes on with this run; this one is to end."
            raise StaleEpoch(f"run {run_id} is in epoch {tip.epoch}, not {epoch} any more", hint=hint, epoch=tip.epoch)
        if epoch is not None and epoch > tip.epoch:
            db.execute("UPDATE runs SET epoch = ? WHERE run_id = ?", (epoch, run_id))
            tip.epoch = epoch
        return tip

    def go_to(self, branch: int | None) -> None:
        self.branch = self.branch if branch is None else branch
        query = "SELECT seq, hash FROM branches WHERE run_id = ? AND branch = ?"
        row = self.db.execute(query, (self.run_id, self.branch)).fetchone()
        if row is None:
            raise NotFound(f"run {self.run_id} has no branch {self.branch}")
        self.seq, self.hash = row

    def go_back(self, fork_seq: int) -> None:
        """To an earlier entry of the branch: what is written next is of another one."""
        if not 0 <= fork_seq <= self.seq:
            raise InvalidValue(
                f"run {self.run_id}, branch {self.branch}: no fork at {fork_seq}, it has 1 to {self.seq}"
            )
        where = {"run_id": self.run_id, "branch": self.branch, "after": fork_seq - 1, "limit": 1, "kind": None}
        if fork_seq:
            self.seq, self.hash = fork_seq, self.db.execute(schema.READ, where).fetchone()[8]
        else:
            root = self.db.execute(schema.PATH + "SELECT run_id FROM path WHERE parent IS NULL", where).fetchone()[0]
            self.seq, self.hash = 0, root_hash(root)

    def fork(self, parent: int, fork_seq: int) -> None:
        self.go_to(parent)
        self.go_back(fork_seq)
        query = "SELECT max(branch) + 1 FROM branches WHERE run_id = ?"
        self.branch = self.db.execute(query, (self.run_id,)).fetchone()[0]
        new = (self.run_id, self.branch, parent, fork_seq, fork_seq, self.hash, None)
        self.db.execute(schema.INSERT_BRANCH, new)
        self.db.execute("UPDATE runs SET branch = ? WHERE run_id = ?", (self.branch, self.run_id))

    def branch_off(self, run_id: str, parent: int, fork_seq: int, epoch: int) -> None:
        """The same in a new run, whose row exists."""
        self.go_to(parent)
        self.go_back(fork_seq)
        new = (run_id, ROOT_BRANCH, parent, fork_seq, fork_seq, self.hash, self.run_id)
        self.db.execute(schema.INSERT_BRANCH, new)
        self.run_id, self.branch, self.epoch = run_id, ROOT_BRANCH, epoch

    def write(self, packed: Packed) -> list[Entry]:
        if packed.head:
            if packed.head.expected_version != self.version:
                message = f"run {self.run_id}: its state was changed meanwhile (version {self.version})"
                raise LogConflict(message, version=self.version)
            update = "UPDATE runs SET value = ?, version = version + 1 WHERE run_id = ?"
            self.db.execute(update, (packed.value, self.run_id))
        self.db.executemany(schema.INSERT_BLOB, packed.blobs)
        now = time.time()
        written = []
        for new, payload in zip(packed.entries, packed.payloads, strict=True):
            self.seq += 1
            facts = (self.run_id, self.branch, self.seq, self.epoch, now, new.kind, new.key, payload)
            self.hash = entry_hash(self.hash, facts)
            self.db.execute(schema.INSERT_ENTRY, (*facts, self.hash))
            written.append(as_entry((*facts, self.hash), new.payload))
        if written:
            update = "UPDATE branches SET seq = ?, hash = ? WHERE run_id = ? AND branch = ?"
            self.db.execute(update, (self.seq, self.hash, self.run_id, self.branch))
        return written
