"""Logs of versions that are in use are brought forward: whole, or not at all."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from perdure.context import sqlite
from perdure.context.log import NewEntry
from perdure.context.sqlite import schema
from perdure.errors import NotFound
from perdure.model import Spent
from perdure.testing.oldlogs import check_turns

GOLDEN = Path(__file__).parents[2] / "golden"

# Opens each of some logs in a process that is killed right before its Nth statement. Says of each how it ended, and of
# one that lives how many statements there were.
OPENER = """
import asyncio, os, signal, sys
from pathlib import Path
from perdure.context import sqlite
from perdure.context.sqlite import database

connect = database.connect

async def open_one(path, killed_at):
    left = killed_at
    def counted(path, **options):
        connection = connect(path, **options)
        def count(statement):
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        connection.set_trace_callback(count)
        return connection
    database.connect = counted
    log = await sqlite.open(path)
    print(killed_at - left, flush=True)
    await log.close()

for path, killed_at in zip(sys.argv[1::2], sys.argv[2::2]):
    child = os.fork()  # quicker by far than a start with all imports
    if not child:
        asyncio.run(open_one(Path(path), int(killed_at)))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def golden(name: str, path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.executescript((GOLDEN / name).read_text())


def opened(logs: dict[Path, int]) -> list[int]:
    """What the opener says."""
    words = [str(word) for log in logs.items() for word in log]
    said = subprocess.run([sys.executable, "-c", OPENER, *words], capture_output=True, text=True, check=True)
    return [int(line) for line in said.stdout.split()]


def version(path: Path) -> int:
    with closing(sqlite3.connect(path)) as db:
        return int(db.execute("PRAGMA user_version").fetchone()[0])


async def check(path: Path) -> None:
    """What was in conversation.sql."""
    log = await sqlite.open(path)
    ended, going = await log.heads()
    assert (ended.run_id, ended.key, ended.seq) == ("0123456789ab", "owls-1", 9)
    assert [head.run_id for head in await log.heads(states=["completed"])] == [ended.run_id]
    assert [head.run_id for head in await log.heads(name="the-owls")] == [ended.run_id]
    assert [head.run_id for head in await log.heads(released=False)] == [going.run_id]
    assert len((await log.read(ended.run_id))[7].payload["messages"]) == 8
    assert (await log.verify(ended.run_id)).entries == 9
    assert (await log.append(going.run_id, [NewEntry(kind="note", payload="x" * 600)], epoch=1))[0].seq == 1
    await log.close()


async def test_a_log_of_version_1_is_listed_and_read(tmp_path: Path) -> None:
    golden("context-log-1/conversation.sql", tmp_path / "log.db")
    await check(tmp_path / "log.db")
    assert version(tmp_path / "log.db") == schema.VERSION
    with closing(sqlite3.connect(tmp_path / "log.db")) as db:
        rows = db.execute("SELECT length(refs) FROM blobs WHERE refs <> x''").fetchall()
    assert sorted(length for (length,) in rows) == [32] + [64] * 7  # a link: its item's text, and its parent


async def test_a_killed_migration_leaves_a_whole_version(tmp_path: Path) -> None:
    golden("context-log-1/conversation.sql", tmp_path / "whole.db")
    statements, ended = opened({tmp_path / "whole.db": 1_000_000})
    assert ended == 0
    logs = {tmp_path / f"log-{killed_at}.db": killed_at for killed_at in range(1, statements + 1)}
    for path in logs:
        golden("context-log-1/conversation.sql", path)
    assert opened(logs) == [-signal.SIGKILL] * statements
    seen = set()
    for path, killed_at in logs.items():
        seen.add(version(path))
        if killed_at % 4 == 0 or killed_at > statements - 4:  # the others are in the same state
            await check(path)
    assert seen == set(range(1, schema.VERSION + 1))


OLD = ["context-log-1/log.sql", "context-log-1/conversation.sql", *(f"context-log-{n}/log.sql" for n in (4, 5, 6, 7))]


@pytest.mark.parametrize("name", OLD)
async def test_what_was_brought_forward_has_the_tables_of_a_new_one(tmp_path: Path, name: str) -> None:
    golden(name, tmp_path / "old.db")
    tables = []
    for path in (tmp_path / "old.db", tmp_path / "new.db"):
        await (await sqlite.open(path)).close()
        with closing(sqlite3.connect(path)) as db:
            tables.append(set(db.execute("SELECT type, name, sql FROM sqlite_master").fetchall()))
    assert tables[0] == tables[1]


async def test_a_log_of_version_4_knows_the_turns_that_it_has(tmp_path: Path) -> None:
    golden("context-log-4/log.sql", tmp_path / "log.db")
    log = await sqlite.open(tmp_path / "log.db")
    await check_turns(log)
    await log.close()


async def test_a_log_of_version_5_has_its_entries_where_they_are_looked_for(tmp_path: Path) -> None:
    golden("context-log-5/log.sql", tmp_path / "log.db")
    log = await sqlite.open(tmp_path / "log.db")
    assert (await log.verify("turns")).entries == 15
    assert [entry.seq for entry in await log.read("fork")] == list(range(1, 12))
    assert [entry.seq for entry in await log.read("waits", kind="wait.started")] == [1, 3, 5]
    assert [entry.kind for entry in await log.find("waits", 1, "main/2")] == ["wait.started", "wait.completed"]
    assert (await log.append("waits", [NewEntry(kind="note")], epoch=2))[0].seq == 8
    assert (await log.verify("waits")).entries == 8
    with pytest.raises(NotFound, match="pruned"):
        await log.read("gone")
    await log.close()
    with closing(sqlite3.connect(tmp_path / "log.db")) as db, pytest.raises(sqlite3.IntegrityError, match="immutable"):
        db.execute("DELETE FROM entries WHERE run_id = 'turns'")


async def test_a_log_of_version_6_has_its_calls(tmp_path: Path) -> None:
    golden("context-log-6/log.sql", tmp_path / "log.db")
    log = await sqlite.open(tmp_path / "log.db")
    for run_id, branch in (("calls", 1), ("calls", 2), ("fork", 1)):  # 70 entries, 65, and 68
        entries = await log.read(run_id, branch=branch)
        for number in range(36):
            key = f"main/{number}"
            assert await log.find(run_id, branch, key) == [entry for entry in entries if entry.key == key]
    await log.close()


async def test_a_log_of_version_7_counts_what_is_spent_from_now_on(tmp_path: Path) -> None:
    golden("context-log-7/log.sql", tmp_path / "log.db")
    log = await sqlite.open(tmp_path / "log.db")
    assert (await log.verify("spends")).entries == 3 and (await log.verify("calls")).entries == 96
    assert [head.spent for head in await log.heads()] == [Spent()] * 3
    usage = {"input_tokens": 11, "output_tokens": 7}
    await log.append("spends", [NewEntry(kind="model.committed", key="main/1", payload={"usage": usage})], epoch=1)
    assert (await log.head("spends")).spent == Spent(calls=1, input_tokens=11, output_tokens=7, unpriced=1)
    await log.close()
