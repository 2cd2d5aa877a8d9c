"""What a writer remembers of the runs that it wrote to, so that an append to one of them needs no question before it.

What is remembered may be wrong: another server may have written meanwhile. So the write says what it was made from
(``premises``), and the database does nothing of it where that is not so any more. Nobody is refused by what is only
remembered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from perdure.context.changes import Job, RunRow, State
from perdure.context.jobs import Append
from perdure.context.postgres import schema
from perdure.context.postgres.exchange import Asked

MAX_RUNS = 4096

Tips = dict[int, tuple[int, bytes]]  # branch -> last seq and hash


class _Run(NamedTuple):
    epoch: int
    branch: int
    version: int
    tips: Tips


class Remembered:
    """The last runs that were written to."""

    def __init__(self) -> None:
        self._runs: dict[str, _Run] = {}  # the one that was written to last is the last

    def __len__(self) -> int:
        return len(self._runs)

    def state(self, jobs: Sequence[Job[Any]]) -> State | None:
        """What these need to know. None: it is not all here, or they are not appends of entries alone."""
        state = State()
        for job in jobs:
            if not isinstance(job, Append) or not job.packed.entries or job.packed.beside:
                return None
            run = self._runs.get(job.run_id)
            if run is None:
                return None
            branch = run.branch if job.branch is None else job.branch
            tip = run.tips.get(branch)
            if tip is None:
                return None
            state.tips[job.run_id, branch] = tip
            if job.run_id not in state.runs:
                state.runs[job.run_id] = RunRow(run.epoch, run.branch, run.version)
        return state

    def premises(self, state: State, lease: str) -> list[Asked]:
        """What these writes are made from, to be asked before them, and the move of the tips."""
        runs = [(run_id, *self._runs[run_id][:3], lease) for run_id in state.runs]
        tips = [
            (run_id, branch, *self._runs[run_id].tips[branch], *state.tips[run_id, branch], turns.asked, turns.replayed)
            for (run_id, branch), turns in ((tip, state.turns[tip]) for tip in state.changed_tips)
        ]
        asked: list[Asked] = [(schema.SAME_RUNS, runs), (schema.MOVE_TIPS, tips)]
        return [(schema.SAME_LEASE, [(lease,)]), *asked] if lease else asked

    def learn(self, state: State) -> None:
        """It was committed."""
        for run_id, row in state.runs.items():
            self._runs.pop(run_id, None)
            if row.is_ours:
                self._runs[run_id] = _Run(row.epoch, row.branch, row.version, {})
        for (run_id, branch), tip in state.tips.items():
            if run_id in self._runs:
                self._runs[run_id].tips[branch] = tip
        while len(self._runs) > MAX_RUNS:
            del self._runs[next(iter(self._runs))]

    def forget(self) -> None:
        self._runs.clear()
