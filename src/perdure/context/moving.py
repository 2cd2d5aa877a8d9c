"""Jobs that bring a whole log in, or drop one: an exported log is taken up, the log of an ended run is pruned, and what
was pruned is taken back from an exported log. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from perdure.context.changes import Needs, State, Turns
from perdure.context.listing import listed, tags
from perdure.context.log import Head
from perdure.context.rows import blob_row
from perdure.context.spending import Spending, spent_of
from perdure.context.values import encode
from perdure.errors import Conflict, LogConflict
from perdure.formats.chain import root_hash
from perdure.formats.logfile import Beginning, Blob, Row, Stretch

Tips = dict[tuple[str, int], bytes]  # (run, branch) -> the hash of its last entry
Ends = dict[int, int]  # branch -> seq of the last entry that is taken from the exported log
TurnsOf = dict[tuple[str, int], Turns]  # (run, branch) -> what was counted in it

ANOTHER = """What is taken back must be what was pruned: give the log that was exported last before it was. \
To read another one's entries, take it into another home (PERDURE_HOME)."""


class Stage:
    """Some verified entries of a run that is not there yet, or was pruned, and blobs. Nobody sees them before the
    ``TakeUp`` or ``TakeBack``."""

    alone = True
    is_brief = False

    def __init__(
        self, run_id: str, rows: Sequence[Row], blobs: Sequence[Blob], *, is_first: bool, back: Ends | None = None
    ) -> None:
        """back: of a run that was pruned, up to where each of its branches is taken from it."""
        self.run_id, self.rows, self.is_first, self.back = run_id, rows, is_first, back
        self.blobs = [blob_row(blob.blob, blob.content()) for blob in blobs]

    def needs(self, needs: Needs) -> None:
        needs.runs.add(self.run_id)
        needs.pruned.add(self.run_id)

    def apply(self, state: State) -> None:
        if self.run_id not in state.pruned if self.back is not None else self.run_id in state.runs:
            hint = "Its log is here already; an exported one is taken into a home that does not have the run."
            raise Conflict(f"there is a run {self.run_id} already", hint=hint)
        if self.is_first and self.back is None:
            state.dropped_logs.add(self.run_id)  # what an import that was interrupted has left
        elif self.is_first and self.back is not None:
            state.cleared += [(self.run_id, branch, upto) for branch, upto in self.back.items()]
        state.entries += self.rows
        state.blobs.update({row[0]: row for row in self.blobs})


def _shared(beginning: Beginning) -> dict[str, int]:
    """The runs whose entries it shares, and the last of those."""
    others = (one for one in beginning.stretches if one.run_id != beginning.run_id)
    return {one.run_id: one.upto for one in others if one.upto > one.fork_seq}


def _needs_shared(beginning: Beginning, needs: Needs) -> None:
    needs.runs |= _shared(beginning).keys()  # nobody prunes them meanwhile
    needs.pruned |= _shared(beginning).keys()


def _check_shared(beginning: Beginning, state: State) -> None:
    """What it shares was looked at before, and may have been pruned since."""
    for run_id, seq in _shared(beginning).items():
        if run_id in state.pruned:
            raise not_shared(beginning.run_id, run_id, seq)


def not_shared(run_id: str, other: str, seq: int) -> Conflict:
    message = f"run {run_id} is a fork: entry {seq} of run {other} is not here"
    return Conflict(message, hint=f"Take up the log of run {other} first.")


class TakeUp:
    """The run whose entries were staged is there from now on. What it shares with another run must be there."""

    alone = True
    is_brief = False

    def __init__(self, beginning: Beginning, tips: Tips, turns: TurnsOf, spent: Spending) -> None:
        self.beginning, self.tips, self.turns, self.spent = beginning, tips, turns, spent
        self.content = encode(beginning.value, "summary of a run")
        self.created = beginning.created
        self.own = [stretch for stretch in beginning.stretches if stretch.run_id == beginning.run_id]

    def needs(self, needs: Needs) -> None:
        needs.runs.add(self.beginning.run_id)
        needs.counted = self.beginning.run_id
        _needs_shared(self.beginning, needs)
        if self.beginning.key is not None:
            needs.keys.add(self.beginning.key)

    def apply(self, state: State) -> Head:
        of = self.beginning
        if of.run_id in state.runs:
            raise Conflict(f"there is a run {of.run_id} already")
        _check_shared(of, state)
        _check_whole(of.run_id, {own.branch: own.upto - own.fork_seq for own in self.own}, state)
        key = None if of.key in state.keys else of.key
        row = (of.run_id, key, self.created, of.epoch, of.branch, 1, self.content, *listed(of.value))
        state.new_runs[of.run_id] = row
        state.new_tags += [(of.run_id, name, what) for name, what in tags(of.value).items()]
        for own in self.own:
            last = self.tips.get((own.run_id, own.branch)) or root_hash(own.run_id)
            state.new_branches.append(_branch(own, last, self._turns(own)))
        if self.spent.is_any:
            state.spent[of.run_id] = self.spent
        seq = next(own.upto for own in self.own if own.branch == of.branch)
        return Head(
            run_id=of.run_id,
            key=key,
            created=of.created,
            epoch=of.epoch,
            branch=of.branch,
            seq=seq,
            version=1,
            value=of.value,
            turns_asked=sum(self._turns(own).asked for own in self.own),
            turns_replayed=sum(self._turns(own).replayed for own in self.own),
            spent=spent_of(self.spent.row),
        )

    def _turns(self, own: Stretch) -> Turns:
        return self.turns.get((own.run_id, own.branch)) or Turns()


def _branch(own: Stretch, last: bytes, turns: Turns) -> Row:
    parent_run = own.parent_run if own.parent_run != own.run_id else None
    return (own.run_id, own.branch, own.parent, own.fork_seq, own.upto, last, parent_run, turns.asked, turns.replayed)


def _check_whole(run_id: str, expected: dict[int, int], state: State) -> None:
    """Another server may have taken the same log up meanwhile, or have dropped it again: then some of ours are gone.
    expected: by branch."""
    if any(state.counts.get(branch, 0) != max(0, count) for branch, count in expected.items()):
        message = f"what was taken up of run {run_id} is not all there: another server takes it up or drops it just now"
        raise Conflict(message, hint="Take it up once more.")


class TakeBack:
    """A run that was pruned has its entries again, if they are those that it had: the last of each branch, and with it
    by the chain all before, has the hash that the branch has kept."""

    alone = True
    is_brief = False

    def __init__(self, head: Head, value: Any, tips: Tips, beginning: Beginning) -> None:
        """value: its summary from now on. tips: of all its branches. beginning: of the exported log."""
        self.head, self.value, self.tips, self.beginning = head, value, tips, beginning
        self.forks = {one.branch: one.fork_seq for one in beginning.stretches if one.run_id == head.run_id}
        self.content = encode(value, "summary of a run")

    def needs(self, needs: Needs) -> None:
        needs.runs.add(self.head.run_id)
        needs.tips.update(self.tips)
        needs.counted = self.head.run_id
        _needs_shared(self.beginning, needs)

    def apply(self, state: State) -> None:
        run_id, run = self.head.run_id, state.run(self.head.run_id)
        if run.version != self.head.version:
            message = f"run {run_id}: its state was changed meanwhile (version {run.version})"
            raise LogConflict(message, version=run.version)
        for at, last in self.tips.items():
            seq, had = state.tip(*at)
            if had != last:
                message = f"run {run_id}, branch {at[1]} had another entry {seq} than the exported log has"
                raise Conflict(message, hint=ANOTHER)
        _check_shared(self.beginning, state)
        ends = {branch: state.tip(run_id, branch)[0] for branch in self.forks}
        _check_whole(run_id, {branch: ends[branch] - seq for branch, seq in self.forks.items()}, state)
        run.fence(run_id, None)
        run.replace(self.value, self.content)
        state.changed_runs.add(run_id)
        state.restored_logs.add(run_id)


class Drop:
    """The entries of a run go, and what is kept of a kind; it, its summary and its branches stay."""

    alone = True
    is_brief = False

    def __init__(self, run_id: str, expected_version: int | None, kind: str | None) -> None:
        self.run_id, self.expected_version, self.kind = run_id, expected_version, kind

    def needs(self, needs: Needs) -> None:
        needs.runs.add(self.run_id)
        needs.shared = self.run_id

    def apply(self, state: State) -> None:
        run = state.run(self.run_id)
        if self.expected_version not in (None, run.version):
            message = f"run {self.run_id}: its state was changed meanwhile (version {run.version})"
            raise LogConflict(message, version=run.version)
        if state.sharers:
            hint = "Prune the forks first."
            message = f"the log of run {self.run_id} is shared by its forks: {', '.join(state.sharers[:5])}"
            raise Conflict(message, hint=hint)
        state.dropped_logs.add(self.run_id)
        if self.kind is not None:
            state.dropped_kinds.add(self.kind)
