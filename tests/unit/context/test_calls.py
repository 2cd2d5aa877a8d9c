"""Entries are found by their key, wherever they lie: put into the index of calls already, or not yet."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from perdure.context import sqlite
from perdure.context.log import ContextLog, NewEntry, NewHead
from perdure.context.sqlite import schema

KEYS = [f"main/{number}" for number in range(9)]


def some(made: random.Random, count: int) -> list[NewEntry]:
    return [NewEntry(kind="note", key=made.choice([*KEYS, None])) for _ in range(count)]


async def check(log: ContextLog, run_id: str) -> None:
    for branch in await log.branches(run_id):
        entries = await log.read(run_id, branch=branch.branch)
        for key in (*KEYS, "main/10"):
            assert await log.find(run_id, branch.branch, key) == [entry for entry in entries if entry.key == key]


def check_index(path: Path) -> None:
    """It has the keys of all up to each branch's last 32nd, and no others."""
    wanted = "SELECT run_id, e.key, branch, e.seq FROM entries e JOIN branches b USING (run_id, branch)"
    wanted += f" WHERE e.key IS NOT NULL AND e.seq <= b.seq - b.seq % {schema.KEYED_BY}"
    with closing(sqlite3.connect(path)) as db:
        assert set(db.execute("SELECT * FROM calls")) == set(db.execute(wanted))


@pytest.mark.parametrize("seed", range(5))
async def test_every_entry_is_found_along_every_branch(tmp_path: Path, seed: int) -> None:
    made = random.Random(seed)
    log = await sqlite.open(tmp_path / "log.db")
    await log.create("run", {})
    tips = {1: 0}
    for _ in range(25):
        count = made.choice((1, 2, 31, 32, 33, 70))
        if made.random() < 0.3:
            parent = made.choice(list(tips))
            at = made.randint(0, tips[parent])
            written = await log.fork("run", some(made, count), parent=parent, fork_seq=at, epoch=1)
        else:
            written = await log.append("run", some(made, count), branch=made.choice(list(tips)), epoch=1)
        tips[written[-1].branch] = written[-1].seq
    await check(log, "run")
    at = made.randint(1, tips[1])
    await log.branch_off("fork", {}, some(made, 40), parent_run="run", parent=1, fork_seq=at, epoch=1)
    await check(log, "fork")
    check_index(tmp_path / "log.db")
    await log.close()


@pytest.mark.parametrize("since", [1, 30, 60])
async def test_a_log_that_is_taken_back_has_its_calls(tmp_path: Path, since: int) -> None:
    made = random.Random(since)
    log = await sqlite.open(tmp_path / "log.db")
    await log.create("run", {"state": "completed"})
    await log.append("run", some(made, 69), epoch=1)
    lines = [line async for line in log.export("run")]
    await log.prune("run")
    with closing(sqlite3.connect(tmp_path / "log.db")) as db:
        assert db.execute("SELECT * FROM calls").fetchall() == []
    head = NewHead(expected_version=(await log.head("run")).version, value={"state": "completed", "n": 1})
    await log.append("run", some(made, since), epoch=1, head=head)

    async def fed() -> AsyncIterator[bytes]:
        for line in lines:
            yield line

    await log.take_up(fed())
    for _ in range(2):
        await check(log, "run")
        check_index(tmp_path / "log.db")
        await log.append("run", some(made, 32), epoch=1)
    await log.close()
