"""Jobs that end the log of a session: it is deleted, or another one takes its place. Pure.

A session that was deleted stays as a row without a name, so that what was acknowledged last is still known of
(``context.mark``); its epoch goes up, so that no writer who looked it up before writes to it any more.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from perdure.context.changes import Needs, State
from perdure.context.jobs import Packed
from perdure.context.listing import GONE, listed
from perdure.context.log import ROOT_BRANCH, NewEntry
from perdure.context.values import encode
from perdure.errors import LogConflict
from perdure.formats.chain import root_hash
from perdure.model import Entry

_VALUE = {"state": GONE, "released": True}


class Forget:
    """A session is gone, with its entries, unless forks share them: then those go when the job is done again later."""

    alone = True
    is_brief = False

    def __init__(self, run_id: str, epoch: int) -> None:
        self.run_id, self.epoch = run_id, epoch

    def needs(self, needs: Needs) -> None:
        needs.runs.add(self.run_id)
        needs.shared = self.run_id

    def apply(self, state: State) -> None:
        state.run(self.run_id).fence(self.run_id, self.epoch)
        forget(state, self.run_id)


def forget(state: State, run_id: str) -> None:
    run = state.runs[run_id]
    run.epoch, run.version = run.epoch + 1, run.version + 1
    run.value, run.listed = encode(_VALUE, "summary of a session"), listed(_VALUE)
    state.changed_runs.add(run_id)
    state.retagged.add(run_id)
    state.release_key(run_id)
    if not state.sharers:
        state.dropped_logs.add(run_id)


class Replace:
    """A new log takes the name of a session, which is forgotten."""

    alone = True
    is_brief = False

    def __init__(
        self,
        old_id: str,
        new_id: str,
        key: str,
        value: object,
        new_entries: Sequence[NewEntry],
        *,
        epoch: int,
        expected_seq: int,
        expected_version: int,
    ) -> None:
        self.old_id, self.new_id, self.key, self.epoch = old_id, new_id, key, epoch
        self.value, self.content = value, encode(value, "summary of a session")
        self.packed = Packed(new_entries, None)
        self.expected_seq, self.expected_version = expected_seq, expected_version
        self.created = time.time()

    def needs(self, needs: Needs) -> None:
        needs.runs |= {self.old_id, self.new_id}
        needs.tips.add((self.old_id, None))
        needs.shared = self.old_id

    def apply(self, state: State) -> list[Entry]:
        run = state.run(self.old_id)
        run.fence(self.old_id, self.epoch)
        seq, _ = state.tip(self.old_id, run.branch)
        if (seq, run.version) != (self.expected_seq, self.expected_version):
            raise LogConflict(f"session {self.old_id} was changed meanwhile (it is at {seq})", seq=seq)
        forget(state, self.old_id)
        state.add_run(self.new_id, self.key, self.created, 0, self.value, self.content)
        state.add_branch(self.new_id, ROOT_BRANCH, None, 0, root_hash(self.new_id))
        return state.write(self.new_id, ROOT_BRANCH, 0, self.packed)
