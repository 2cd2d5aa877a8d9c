"""A handful of the lives of the crash matrix (``make crash`` lives them all); it finds faults that are there."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

from perdure.context.points import POINTS
from perdure.testing.crash.life import Life, Outcome, Wish
from perdure.testing.crash.matrix import Asked, Matrix, compare, live
from perdure.testing.crash.workload import BY_NAME

# A server that says that an emit was written, and writes it a moment later.
TOO_EARLY = """
import os, sys, time
from perdure.context.mark import Mark
from perdure.context.sqlite import writer
from perdure.server.__main__ import main

commit, answer = writer.Writer._commit, writer.Writer._answer

class Late:
    def __init__(self, connection):
        self.connection = connection

    def execute(self, statement, *values):
        return self.connection.execute("SELECT 1" if statement == "COMMIT" else statement, *values)

    def __getattr__(self, name):
        return getattr(self.connection, name)

class Later:
    def __init__(self, faults):
        self.faults, self.points = faults, set()

    def reach(self, moment, points):
        self.points = set(points)

def too_early(self, jobs):
    if not any("emit" in str(getattr(job, "packed", None) and job.packed.entries) for job in jobs):
        return commit(self, jobs)
    faults, connection = self._faults, self._connection
    self._faults, self._connection = Later(faults), Late(connection)
    results, self.late = commit(self, jobs), self._faults.points
    self._faults, self._connection = faults, connection
    return results

def then_late(self, batch, results):
    answer(self, batch, results)
    if self._connection.in_transaction:
        time.sleep(0.3)
        self._faults.reach("before", self.late)
        self._connection.execute("COMMIT")
        self._faults.reach("after", self.late)

writer.Writer._commit, writer.Writer._answer = too_early, then_late
writer.QUICK_IN_A_ROW = sys.maxsize  # in the thread, where it may sleep
Mark.write = lambda *what: None  # it would not even start again
os._exit(main())
"""


def died(outcome: Outcome) -> list[str]:
    return [death.who for death in outcome.deaths if death.who == "server"]


@pytest.mark.timeout(180)
async def test_every_durable_write_has_a_row_in_the_matrix() -> None:
    outcome = await live(Wish())
    assert outcome.wrong == []
    assert died(outcome) == []
    assert compare("sqlite", outcome.points) == []  # a new kind of write gets a row, and the workload comes by it
    assert Counter(outcome.points)["row.summary"] > 20


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "crash",
    [
        "run.suspended:before:1",
        "run.resuming:after:1",
        "model.started:after:2",
        "model.committed:before:1",
        "step.intent:after:2",
        "step.result:before:1",
        "diverged:before:1",
        "file.server.secret:before:1",
        "row.hook:after:9",
        "row.key:before:1",
        "row.pruned:before:1",
        "row.swept:before:1",
    ],
)
async def test_a_server_that_dies_there_loses_nothing_and_repeats_nothing(crash: str) -> None:
    outcome = await live(Wish(crash=crash))
    assert outcome.wrong == []
    assert died(outcome)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("seed", [1])
async def test_servers_and_machines_that_die_at_random_instants(seed: int) -> None:
    outcome = await live(Wish(kills=5, seed=seed))
    assert outcome.wrong == []


@pytest.mark.timeout(180)
async def test_a_server_that_acknowledges_before_it_commits_is_found(tmp_path: Path) -> None:
    program = tmp_path / "too_early.py"
    program.write_text(TOO_EARLY)
    plans, server = [BY_NAME["everything"]], (sys.executable, str(program))
    outcome = await Life(tmp_path, Wish(crash="emit:before:1"), server=server, plans=plans).run()
    assert died(outcome)
    assert any("was answered /perdure/v1/emit" in what for what in outcome.wrong), outcome.wrong


async def test_the_table_tells_what_was_lived_and_what_was_wrong() -> None:
    matrix = Matrix(Asked(databases=("sqlite",)))
    outcome = await live(Wish(crash="emit:after:1"))
    bad = Outcome(Wish(crash="emit:before:1"), wrong=["something"])
    matrix.outcomes += [outcome, bad]
    table = matrix.table("sqlite")
    assert "| `emit` | the program said something | -, **1 wrong** | 1 |" in table
    assert table.count("\n| `") == len(POINTS)
    assert '"crash": "emit:after:1"' in matrix.to_json()


def test_what_is_asked_for_by_the_environment() -> None:
    asked = Asked.of({"CRASH_POINTS": "step. run.queued", "CRASH_DATABASE": "sqlite", "CRASH_RANDOM": "7"})
    assert (asked.points, asked.databases, asked.random, asked.is_whole) == (
        ("step.", "run.queued"),
        ("sqlite",),
        7,
        False,
    )
    assert not Asked.of({"CRASH_RANDOM": "10"}).is_whole
    assert Asked.of({}).is_whole
