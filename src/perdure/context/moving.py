"""Jobs that bring a whole log in, or drop one: an exported log is taken up, the log of an ended run is pruned. Pure."""

from __future__ import annotations

from collections.abc import Sequence

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
TurnsOf = dict[tuple[str, int], Turns]  # (run, branch) -> what was counted in it


class Stage:
    """Some verified entries of a run that is not there yet, and blobs. Nobody sees them before ``TakeUp``."""

    alone = True

    def __init__(self, run_id: str, rows: Sequence[Row], blobs: Sequence[Blob], *, is_first: bool) -> None:
        self.run_id, self.rows, self.is_first = run_id, rows, is_first
        self.blobs = [blob_row(blob.blob, blob.content()) for blob in blobs]

    def needs(self, needs: Needs) -> None:
        needs.runs.add(self.run_id)

    def apply(self, state: State) -> None:
        if self.run_id in state.runs:
            hint = "Its log is here already; an exported one is taken into a home that does not have the run."
            raise Conflict(f"there is a run {self.run_id} already", hint=hint)
        if self.is_first:
            state.dropped_logs.add(self.run_id)  # what an import that was interrupted has left
        state.entries += self.rows
        state.blobs.update({row[0]: row for row in self.blobs})


class TakeUp:
    """The run whose entries were staged is there from now on. What it shares with another run must be there."""

    alone = True

    def __init__(self, beginning: Beginning, tips: Tips, turns: TurnsOf, spent: Spending) -> None:
        self.beginning, self.tips, self.turns, self.spent = beginning, tips, turns, spent
        self.content = encode(beginning.value, "summary of a run")
        self.created = beginning.created
        self.own = [stretch for stretch in beginning.stretches if stretch.run_id == beginning.run_id]

    def needs(self, needs: Needs) -> None:
        needs.runs.add(self.beginning.run_id)
        if self.beginning.key is not None:
            needs.keys.add(self.beginning.key)

    def apply(self, state: State) -> Head:
        of = self.beginning
        if of.run_id in state.runs:
            raise Conflict(f"there is a run {of.run_id} already")
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


class Drop:
    """The entries of a run go, and what is kept of a kind; it, its summary and its branches stay."""

    alone = True

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
