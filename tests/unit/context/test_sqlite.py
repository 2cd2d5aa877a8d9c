"""What is particular to the log in a file: damage, rights, space, locks, and a writer that is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Collection
from contextlib import closing
from pathlib import Path

import pytest

from perdure.context import sqlite
from perdure.context.faults import Faults
from perdure.context.log import ContextLog, NewEntry
from perdure.context.sqlite import known, schema, writer
from perdure.errors import AlreadyRunning, NoRights, NoSpace, ProtocolError, StaleEpoch, Unavailable

GOLDEN = Path(__file__).parents[2] / "golden"
NOTE = [NewEntry(kind="note", payload={"n": 1})]


async def filled(path: Path) -> None:
    log = await sqlite.open(path)
    await log.create("run", {})
    for i in range(5):
        payload = {"i": i, "text": f"{i}" * 1000, "list": ["item " * 50, "x" * 600, i]}
        await log.append("run", [NewEntry(kind="note", payload=payload)], epoch=1)
    await log.close()


async def test_a_second_server_on_the_same_file_is_refused(tmp_path: Path) -> None:
    log = await sqlite.open(tmp_path / "log.db")
    with pytest.raises(AlreadyRunning, match=f"process {os.getpid()} has the context log") as refused:
        await sqlite.open(tmp_path / "log.db")
    assert refused.value.hint
    (tmp_path / "link.db").symlink_to("log.db")
    with pytest.raises(AlreadyRunning):
        await sqlite.open(tmp_path / "link.db")
    await log.close()
    await (await sqlite.open(tmp_path / "link.db")).close()


@pytest.mark.parametrize("content", [b"this is not a database, but a text of some length" * 100, b"\0" * 5000])
async def test_a_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "log.db").write_bytes(content)
    with pytest.raises(ProtocolError) as refused:
        await sqlite.open(tmp_path / "log.db")
    assert refused.value.hint
    assert (tmp_path / "log.db").read_bytes() == content


async def test_a_foreign_database_and_a_newer_version_are_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "other.db") as db:
        db.execute("CREATE TABLE notes (text)")
    db.close()
    with pytest.raises(ProtocolError, match="not a context log"):
        await sqlite.open(tmp_path / "other.db")
    await filled(tmp_path / "log.db")
    with sqlite3.connect(tmp_path / "log.db") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(ProtocolError, match="version 99"):
        await sqlite.open(tmp_path / "log.db")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_no_rights(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(NoRights, match="cannot be written"):
        await sqlite.open(tmp_path / "log.db")


async def test_a_file_that_became_read_only(tmp_path: Path) -> None:
    log = await sqlite.open(tmp_path / "log.db")
    await log.create("run", {})
    log._database._writer._connection.execute("PRAGMA query_only = ON").fetchone()
    with pytest.raises(Unavailable, match="cannot be written") as refused:
        await log.append("run", NOTE, epoch=1)
    assert refused.value.hint
    assert await log.read("run") == []
    await log.close()


async def test_a_folder_that_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NoRights, match="cannot be written"):
        await sqlite.open(tmp_path / "file" / "log.db")


async def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    log = await sqlite.open(tmp_path / "log.db")
    await log.create("run", {})
    await log.append("run", NOTE, epoch=1)
    limit = "PRAGMA max_page_count = 40"
    log._database._writer._connection.execute(limit).fetchone()
    with pytest.raises(NoSpace, match="full"):
        for i in range(1000):
            await log.append("run", [NewEntry(kind="note", payload=os.urandom(2000).hex() + str(i))], epoch=1)
    seq = (await log.head("run")).seq
    assert (await log.verify("run")).entries == seq
    log._database._writer._connection.execute("PRAGMA max_page_count = 100000").fetchone()
    assert (await log.append("run", NOTE, epoch=1))[0].seq == seq + 1
    await log.close()


async def test_what_the_writer_does_not_remember_it_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "REMEMBERED", 2)
    log = await sqlite.open(tmp_path / "log.db")
    runs = ["one", "two", "three"]
    for run_id in runs:
        await log.create(run_id, {})
    for epoch in range(1, 4):
        await asyncio.gather(*(log.append(run_id, NOTE, epoch=epoch) for run_id in runs for _ in range(3)))
        for run_id in runs:
            await log.fork(run_id, NOTE, parent=epoch, fork_seq=2, epoch=epoch)
            with pytest.raises(StaleEpoch):
                await log.append(run_id, NOTE, epoch=epoch - 1)
    for run_id in runs:
        assert [b.seq for b in await log.branches(run_id)] == [3, 6, 6, 3]
        await log.verify(run_id)
    await log.close()


async def test_a_backup_that_is_restored_under_the_writer_is_what_it_goes_on_from(tmp_path: Path) -> None:
    log = await sqlite.open(tmp_path / "log.db")
    await log.create("run", {})
    await log.append("run", NOTE, epoch=1)
    with closing(sqlite3.connect(tmp_path / "log.db")) as shell, closing(sqlite3.connect(":memory:")) as backup:
        shell.backup(backup)
        for epoch in (1, 2):
            await log.append("run", NOTE, epoch=epoch)
        backup.backup(shell)
    assert (await log.append("run", NOTE, epoch=1))[0].seq == 2
    assert (await log.verify("run")).entries == 2
    await log.close()


async def test_a_write_goes_on_without_the_caller(tmp_path: Path) -> None:
    log = await sqlite.open(tmp_path / "log.db")
    await log.create("run", {})
    gone = asyncio.create_task(log.append("run", NOTE, epoch=1))
    await asyncio.sleep(0)
    gone.cancel()
    assert (await log.append("run", NOTE, epoch=1))[0].seq == 2
    assert gone.cancelled()
    await log.close()


async def test_a_foreign_lock_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "BUSY_TIMEOUT_MS", 50)
    log = await sqlite.open(tmp_path / "log.db")
    await log.create("run", {})
    shell = sqlite3.connect(tmp_path / "log.db", isolation_level=None)
    shell.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="another program holds a lock"):
        await log.append("run", NOTE, epoch=1)
    shell.execute("ROLLBACK")
    shell.close()
    assert (await log.append("run", NOTE, epoch=1))[0].seq == 1
    await log.close()


class Committers(Faults):
    """Which threads commit, and how many entries each time."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[bool, int]] = []  # whether it was the loop's

    def reach(self, moment: str, points: Collection[str]) -> None:
        if moment == "after":
            self.seen.append((threading.current_thread() is threading.main_thread(), len(points)))

    @property
    def in_loop(self) -> list[bool]:
        return [in_loop for in_loop, _ in self.seen]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every commit counts as quick, however busy the machine is."""
    monkeypatch.setattr(writer, "QUICK_S", 60)


async def lone(log: ContextLog, count: int) -> None:
    for _ in range(count):
        await log.append("run", NOTE, epoch=1)


@pytest.mark.usefixtures("quick")
async def test_a_lone_append_is_committed_by_the_loop_where_commits_are_quick(tmp_path: Path) -> None:
    committers = Committers()
    log = await sqlite.open(tmp_path / "log.db", faults=committers)
    await log.create("run", {})
    await lone(log, 200)
    first, period = writer.QUICK_IN_A_ROW, writer.HERE_IN_A_ROW + 1
    assert committers.in_loop == [at >= first and (at - first) % period != period - 1 for at in range(201)]
    with pytest.raises(StaleEpoch):
        await log.append("run", NOTE, epoch=0)
    assert (await log.verify("run")).entries == 200
    await log.close()


@pytest.mark.usefixtures("quick")
async def test_what_is_not_alone_or_not_brief_is_committed_by_the_thread(tmp_path: Path) -> None:
    committers = Committers()
    log = await sqlite.open(tmp_path / "log.db", faults=committers)
    await log.create("run", {})
    await lone(log, 20)
    assert committers.in_loop[-1]
    committers.seen.clear()
    await asyncio.gather(*(log.append("run", NOTE, epoch=1) for _ in range(3)))
    await log.append("run", [NewEntry(kind="note", payload=os.urandom(20_000).hex())], epoch=1)
    await log.append("run", NOTE * 17, epoch=1)
    await log.keep("queue", "a", 1)
    await log.fork("run", NOTE, parent=1, fork_seq=3, epoch=1)
    slow = asyncio.create_task(log.append("run", NOTE, epoch=1))
    other = asyncio.create_task(log.keep("queue", "a", 2))
    await asyncio.gather(slow, other)
    assert committers.in_loop == [False] * 6
    await lone(log, 1)
    assert committers.in_loop[-1]
    await log.close()


async def test_a_slow_commit_is_the_last_of_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    committers = Committers()
    log = await sqlite.open(tmp_path / "log.db", faults=committers)
    await log.create("run", {})
    monkeypatch.setattr(writer, "QUICK_S", 60)
    await lone(log, 20)
    monkeypatch.setattr(writer, "QUICK_S", 0)
    committers.seen.clear()
    await lone(log, 20)
    assert committers.in_loop == [True] + [False] * 19
    await log.close()


@pytest.mark.usefixtures("quick")
async def test_only_commits_that_sync_something_say_that_the_disk_is_quick(tmp_path: Path) -> None:
    committers = Committers()
    log = await sqlite.open(tmp_path / "log.db", faults=committers)
    await log.create("run", {})
    for _ in range(20):
        assert not await log.drop("queue", "none")
    committers.seen.clear()
    await lone(log, writer.QUICK_IN_A_ROW)
    assert committers.in_loop == [False] * (writer.QUICK_IN_A_ROW - 1) + [True]  # and the run's own
    await log.close()


@pytest.mark.usefixtures("quick")
async def test_a_commit_that_failed_is_the_last_of_the_loop(tmp_path: Path) -> None:
    committers = Committers()
    log = await sqlite.open(tmp_path / "log.db", faults=committers)
    await log.create("run", {})
    await lone(log, 20)
    log._database._writer._connection.execute("PRAGMA max_page_count = 1").fetchone()
    with pytest.raises(NoSpace):
        await lone(log, 1000)
    assert committers.in_loop[-1]
    log._database._writer._connection.execute("PRAGMA max_page_count = 100000").fetchone()
    committers.seen.clear()
    await lone(log, writer.QUICK_IN_A_ROW + 1)
    assert committers.in_loop == [False] * writer.QUICK_IN_A_ROW + [True]
    await log.close()


@pytest.mark.usefixtures("quick")
async def test_the_loop_does_not_wait_for_a_lock(tmp_path: Path) -> None:
    log = await sqlite.open(tmp_path / "log.db")
    await log.create("run", {})
    await lone(log, 20)
    with closing(sqlite3.connect(tmp_path / "log.db", isolation_level=None)) as shell:
        shell.execute("BEGIN IMMEDIATE")
        append = asyncio.create_task(log.append("run", NOTE, epoch=1))
        await log.head("run")  # the loop goes on, there and back by a thread
        assert not append.done()
        shell.execute("ROLLBACK")
    assert [entry.seq for entry in await append] == [21]
    await log.close()


@pytest.mark.usefixtures("quick")
async def test_what_the_loop_commits_is_checkpointed(tmp_path: Path) -> None:
    log = await sqlite.open(tmp_path / "log.db")
    await log.create("run", {})
    await lone(log, 1500)
    wal_pages = (tmp_path / "log.db-wal").stat().st_size // 4096
    assert wal_pages < 2 * writer.CHECKPOINT_PAGES
    await log.close()


@pytest.mark.usefixtures("quick")
async def test_a_commit_of_the_loop_goes_on_without_the_caller(tmp_path: Path) -> None:
    log = await sqlite.open(tmp_path / "log.db")
    await log.create("run", {})
    await lone(log, 20)
    gone = asyncio.create_task(log.append("run", NOTE, epoch=1))
    await asyncio.sleep(0)
    gone.cancel()
    assert (await log.append("run", NOTE, epoch=1))[0].seq == 22
    assert gone.cancelled()
    last = asyncio.create_task(log.append("run", NOTE, epoch=1))
    await asyncio.sleep(0)
    await log.close()  # with what was asked for before
    assert [entry.seq for entry in await last] == [23]


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE entries SET payload = CAST(replace(payload, '\"i\":2', '\"i\":9') AS BLOB) WHERE seq = 3",
        "UPDATE entries SET time = time + 1 WHERE seq = 2",
        "UPDATE entries SET epoch = 2 WHERE seq = 5",
        "DELETE FROM entries WHERE seq = 3",
        "DELETE FROM entries WHERE seq = 5",
        "DELETE FROM blobs WHERE rowid = 2",
        "UPDATE blobs SET content = zeroblob(length(content)) WHERE rowid = 3",
    ],
)
async def test_damage_is_refused_by_triggers_and_found_by_verify(tmp_path: Path, damage: str) -> None:
    await filled(tmp_path / "log.db")
    db = sqlite3.connect(tmp_path / "log.db", isolation_level=None)
    if "entries" in damage or "UPDATE blobs" in damage:
        with pytest.raises(sqlite3.IntegrityError, match="immutable"):
            db.execute(damage)
    for trigger in ("entries_never_change", "entries_never_go", "blobs_never_change"):
        db.execute(f"DROP TRIGGER {trigger}")
    db.execute(damage)
    db.close()
    log = await sqlite.open(tmp_path / "log.db")
    with pytest.raises(ProtocolError):
        await log.verify("run")
    await log.close()


WRITER = """
import asyncio, sys
from contextlib import closing
from pathlib import Path
from perdure.context import sqlite
from perdure.context.log import NewEntry
from perdure.context.sqlite import writer

async def main():
    log = await sqlite.open(Path(sys.argv[1]))
    async def write(run):
        await log.create(run, {})
        for i in range(100000):
            [entry] = await log.append(run, [NewEntry(kind="note", payload={"i": i, "text": str(i) * 200})], epoch=1)
            sys.stdout.write(f"{run} {entry.seq} {entry.hash}\\n")
            sys.stdout.flush()
    await asyncio.gather(*(write(f"run{n}") for n in range(int(sys.argv[2]))))

writer.QUICK_S = 60
asyncio.run(main())
"""


def kill_after(lines: int, path: Path, runs: int) -> list[list[str]]:
    """What a writer had acknowledged (run, seq, hash) when it was killed some time after so many lines."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(runs)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as output:
        said = [output.readline() for _ in range(lines)]
        process.send_signal(signal.SIGKILL)
        said += output.readlines()
    process.wait()
    return [line.split() for line in said if line.endswith("\n") and len(line.split()) == 3]


@pytest.mark.parametrize(("lines", "runs"), [(1, 4), (50, 4), (700, 4), (50, 1), (700, 1)])  # one alone: in the loop
async def test_acknowledged_entries_survive_a_killed_writer(tmp_path: Path, lines: int, runs: int) -> None:
    acknowledged = kill_after(lines, tmp_path / "log.db", runs)
    assert len(acknowledged) >= lines
    log = await sqlite.open(tmp_path / "log.db")
    for run in {run for run, _, _ in acknowledged}:
        found = {entry.seq: entry.hash for entry in await log.read(run, limit=1_000_000)}
        assert all(found[int(seq)] == digest for owner, seq, digest in acknowledged if owner == run)
        assert (await log.verify(run)).entries == len(found)
    await log.close()


async def test_a_database_of_the_first_version_is_brought_forward(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    with closing(sqlite3.connect(path)) as db:
        db.executescript(schema.SCHEMA)
        db.execute("INSERT INTO runs VALUES ('run', NULL, 1.0, 0, 1, 1, x'7b7d')")
        db.execute("INSERT INTO branches VALUES ('run', 1, NULL, 0, 0, x'00')")
        db.commit()
    log = await sqlite.open(path)
    assert [head.run_id for head in await log.heads()] == ["run"]
    assert (await log.keep("queue", "a", 1)).version == 1
    await log.close()
    log = await sqlite.open(path)
    assert [kept.value for kept in await log.kept("queue")] == [1]
    await log.close()


async def test_a_log_of_version_1_is_read_and_goes_on(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "log.db", isolation_level=None)
    db.executescript((GOLDEN / "context-log-1" / "log.sql").read_text())
    db.close()
    log = await sqlite.open(tmp_path / "log.db")
    assert [(e.branch, e.seq, e.kind) for e in await log.read("run")] == [
        (1, 1, "note"),
        (1, 2, "note"),
        (2, 3, "diverged"),
    ]
    assert (await log.read("run", branch=1))[2].payload == {"i": 2, "text": "2" * 600}
    await log.branch_off("two", {}, NOTE, parent_run="run", parent=1, fork_seq=3, epoch=2)
    assert (await log.verify("two")).entries == 4
    await log.close()
    log = await sqlite.open(tmp_path / "log.db")
    assert [head.run_id for head in await log.heads()] == ["run", "two"]
    await log.close()
