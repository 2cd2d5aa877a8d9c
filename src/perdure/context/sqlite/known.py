"""What is known of the database before a batch: read, or remembered from the batch before."""

from __future__ import annotations

import sqlite3

from perdure.context import queries
from perdure.context.changes import Needs, RunRow, State
from perdure.context.sqlite import schema

REMEMBERED = 4096  # runs, and so many branches


class Known:
    """Remembers the fences of runs and the tips of branches, until somebody else writes to the file: a person, that is
    (a backup is restored into it), as one server has it. Belongs to the writer."""

    def __init__(self) -> None:
        self._runs: dict[str, tuple[int, int, int]] = {}  # epoch, branch, version
        self._tips: dict[tuple[str, int], tuple[int, bytes]] = {}
        self._changed_by_others: tuple[int] | None = None

    def state(self, db: sqlite3.Connection, needs: Needs) -> State:
        """All of what is needed, in a transaction."""
        changed: tuple[int] | None = db.execute("PRAGMA data_version").fetchone()
        if changed != self._changed_by_others:
            self._changed_by_others = changed
            self.forget()
        state = State()
        for run_id in needs.runs:
            run = self._runs.get(run_id) or self._read_run(db, run_id)
            if run:
                state.runs[run_id] = RunRow(*run)
        for run_id, branch in needs.tips:
            if run_id in state.runs:
                at = run_id, state.runs[run_id].branch if branch is None else branch
                tip = self._tips.get(at) or self._read_tip(db, at)
                if tip:
                    state.tips[at] = tip
        for key in needs.keys:
            for (run_id,) in db.execute("SELECT run_id FROM runs WHERE key = ?", (key,)):
                state.keys[key] = run_id
        for kind, name in needs.kept:
            for (version,) in db.execute(schema.KEPT, (kind, name)):
                state.kept[kind, name] = version
        if needs.sweep:
            state.sweep = db.execute(schema.SWEEP).fetchone()[0]
        for run_id in needs.pruned:
            if db.execute(schema.PRUNED, (run_id,)).fetchone() == (1,):
                state.pruned.add(run_id)
        if needs.counted:
            state.counts = dict(db.execute(schema.COUNTS, (needs.counted,)).fetchall())
        if needs.shared:
            state.sharers = [run_id for (run_id,) in db.execute(schema.SHARERS, (needs.shared,))]
        if needs.fork:
            where = dict(zip(("run_id", "branch", "seq"), needs.fork, strict=True))
            for state.fork_hash, root, newest in db.execute(queries.FORK, where):
                state.fork_root, state.newest_branch = root or "", newest or 0
        return state

    def _read_run(self, db: sqlite3.Connection, run_id: str) -> tuple[int, int, int] | None:
        row: tuple[int, int, int] | None = db.execute(schema.RUN, (run_id,)).fetchone()
        if row:
            if len(self._runs) >= REMEMBERED:
                self._runs.clear()
            self._runs[run_id] = row
        return row

    def _read_tip(self, db: sqlite3.Connection, at: tuple[str, int]) -> tuple[int, bytes] | None:
        row: tuple[int, bytes] | None = db.execute(schema.TIP, at).fetchone()
        if row:
            self._remember_tip(at, row)
        return row

    def _remember_tip(self, at: tuple[str, int], tip: tuple[int, bytes]) -> None:
        if len(self._tips) >= REMEMBERED:
            self._tips.clear()
        self._tips[at] = tip

    def committed(self, state: State) -> None:
        """This is what the database has from now on."""
        for run_id in state.changed_runs:
            run = state.runs[run_id]
            self._runs[run_id] = run.epoch, run.branch, run.version
        for at in state.changed_tips:
            self._remember_tip(at, state.tips[at])

    def forget(self) -> None:
        """What a transaction that failed has left is read again."""
        self._runs.clear()
        self._tips.clear()
