"""A process that dies at a named write: the write is there, or is not, as was asked for."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from perdure.context import sqlite
from perdure.context.changes import State
from perdure.context.faults import Faults
from perdure.context.spending import Spending
from perdure.errors import InvalidValue

WRITER = """
import asyncio, os, sys
from pathlib import Path
from perdure.context import sqlite
from perdure.context.faults import Faults
from perdure.context.log import NewEntry

async def main():
    log = await sqlite.open(Path(sys.argv[1]), faults=Faults.wanted(os.environ))
    await log.create("run", {})
    for number in range(3):
        entries = [NewEntry(kind="step.intent", payload={"number": number}), NewEntry(kind="note")]
        await log.append("run", entries, epoch=1)
    await log.close()

asyncio.run(main())
"""


def write(path: Path, **environ: str) -> int:
    done = subprocess.run([sys.executable, "-c", WRITER, str(path)], env={**os.environ, **environ}, timeout=60)
    return done.returncode


def entries(path: Path) -> int:
    async def count() -> int:
        log = await sqlite.open(path)
        found = await log.read("run") if await log.heads() else []
        await log.close()
        return len(found)

    return asyncio.run(count())


@pytest.mark.parametrize(
    ("asked", "left"),
    [("step.intent", 0), ("note:after", 2), ("step.intent:before:3", 4), ("note:3", 4), ("row.run:before", 0)],
)
def test_a_process_dies_at_the_write_that_was_named(tmp_path: Path, asked: str, left: int) -> None:
    assert write(tmp_path / "log.db", PERDURE_CRASH=asked) == -signal.SIGKILL
    assert entries(tmp_path / "log.db") == left


def test_what_is_not_reached_kills_nobody_and_points_are_recorded(tmp_path: Path) -> None:
    record = tmp_path / "points"
    assert write(tmp_path / "log.db", PERDURE_CRASH="signal", PERDURE_CRASH_POINTS=str(record)) == 0
    assert entries(tmp_path / "log.db") == 6
    wanted = {"row.run", "row.branch", "row.tip", "row.summary", "step.intent", "note"}
    assert set(record.read_text().split()) == wanted
    assert record.read_text().split().count("note") == 3


@pytest.mark.parametrize("asked", ["note:sometimes", "note:before:0", "note:before:1:2"])
def test_nonsense_is_refused(asked: str) -> None:
    with pytest.raises(InvalidValue, match="PERDURE_CRASH"):
        Faults.wanted({"PERDURE_CRASH": asked})


@pytest.mark.parametrize("asked", ["nonsense", "step.intents:after:2", ":before", "row.hooks"])
def test_a_point_that_is_none_is_refused_with_those_that_are(asked: str) -> None:
    with pytest.raises(InvalidValue, match="no write has that name") as caught:
        Faults.wanted({"PERDURE_CRASH": asked})
    assert all(
        name in caught.value.hint for name in ("step.intent", "row.hook.dropped", "lease.take", "file.server.json")
    )


def test_nobody_asked_for_it() -> None:
    assert Faults.wanted({}) is None


def test_every_kind_of_row_has_a_point() -> None:
    """A field that is added to what a transaction writes is here, or is known to be none."""
    written: dict[str, Any] = {
        "released_keys": {"run"},
        "new_tags": [()],
        "dropped_logs": {"run"},
        "removed_blobs": [(b"", 1)],
        "is_sweep": True,
        "new_runs": {"run": ()},
        "changed_runs": {"run"},
        "new_branches": [()],
        "changed_tips": {("run", 1)},
        "spent": {"run": Spending()},
        "entries": [("run", 1, 1, 1, 0.0, "note")],
        "blobs": {b"": ()},
        "keeps": {("queue", "a"): b"{}", ("schedule", "b"): None},
    }
    known = {"runs", "keys", "tips", "fork_hash", "fork_root", "newest_branch", "kept", "sharers", "sweep", "retagged"}
    known |= {
        "turns",
        "dropped_kinds",
        "cleared",
        "restored_logs",
        "pruned",
        "counts",
        "joint",
    }  # with the tip, log, summary, or what is spent
    assert {field.name for field in dataclasses.fields(State)} == known | set(written)
    points = [State(**{name: value}).points for name, value in written.items()]
    assert all(points)
    assert len(set().union(*points)) == len(written) + 1
    assert points[-1] == {"row.queue", "row.schedule.dropped"}
