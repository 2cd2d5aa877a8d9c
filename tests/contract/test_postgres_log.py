"""What is particular to the log on PostgreSQL: servers that share it, its past that nobody changes, and a database that
goes away in the middle of everything."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from pathlib import Path

import psycopg
import pytest

from perdure.context import exporting, sqlite
from perdure.context import postgres as postgres_log
from perdure.context.faults import Faults
from perdure.context.log import Beside, ContextLog, NewEntry, NewHead
from perdure.context.postgres import arrays, connections
from perdure.context.postgres import schema as postgres_schema
from perdure.errors import (
    Conflict,
    InvalidValue,
    LeaseLost,
    LogConflict,
    NoRights,
    NotFound,
    ProtocolError,
    StaleEpoch,
    Unavailable,
)
from perdure.testing.oldlogs import check_turns
from perdure.testing.postgres import PostgresServer, postgres_server

GOLDEN = Path(__file__).parents[1] / "golden"
NOTE = [NewEntry(kind="note", payload={"n": 1, "text": "x" * 600})]
_schemas = (f"mine_{number}" for number in itertools.count())


@pytest.fixture
def schema() -> str:
    return next(_schemas)


@pytest.fixture
async def two(postgres: PostgresServer, schema: str) -> AsyncIterator[list[ContextLog]]:
    """One log, opened by two servers at the same moment."""
    logs = await asyncio.gather(*(postgres_log.open(postgres.url, schema=schema) for _ in range(2)))
    yield logs
    for log in logs:
        await log.close()


@pytest.fixture
def brittle() -> Iterator[PostgresServer]:
    """A server of this test alone, to be stopped."""
    with postgres_server() as server:
        yield server


async def test_two_servers_append_to_the_same_runs(two: list[ContextLog]) -> None:
    for run in range(3):
        await two[0].create(f"run{run}", {})

    async def write(log: ContextLog, run: int) -> None:
        for _ in range(15):
            await log.append(f"run{run}", NOTE, epoch=1)

    await asyncio.gather(*(write(log, run) for log in two for run in range(3) for _ in range(2)))
    for run in range(3):
        assert (await two[1].head(f"run{run}")).seq == 60
        assert (await two[0].verify(f"run{run}")).entries == 60


async def test_only_one_of_two_servers_gets_a_key(two: list[ContextLog]) -> None:
    async def start(log: ContextLog, number: int) -> str:
        return (await log.create(f"run{number}", {}, key="owls")).run_id

    assert len(set(await asyncio.gather(*(start(two[n % 2], n) for n in range(10))))) == 1
    results = await asyncio.gather(
        *(log.keep("queue", "a", n, expected_version=0) for n, log in enumerate(two)), return_exceptions=True
    )
    assert len([result for result in results if isinstance(result, BaseException)]) == 1


async def test_a_follower_hears_of_what_another_server_writes(two: list[ContextLog]) -> None:
    await two[0].create("run", {})
    following = two[1].follow("run")
    for seq in range(1, 6):
        await two[0].append("run", NOTE, epoch=1)
        entry = await asyncio.wait_for(anext(following), 10)
        assert entry.seq == seq
    await following.aclose()  # type: ignore[attr-defined]


async def test_a_follower_hears_of_it_without_any_notification(two: list[ContextLog], postgres: PostgresServer) -> None:
    await two[0].create("run", {})
    # Nothing outside can make notifications go astray.
    two[0]._database._notices.channel = "somewhere_else"  # type: ignore[attr-defined]
    following = two[1].follow("run")
    await two[0].append("run", NOTE, epoch=1)
    assert (await asyncio.wait_for(anext(following), 10)).seq == 1
    waiting = asyncio.ensure_future(anext(following))
    await two[0].append("run", NOTE, epoch=1)
    assert (await asyncio.wait_for(waiting, 10)).seq == 2
    await following.aclose()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE entries SET payload = '{}' WHERE seq = 1",
        "DELETE FROM entries",
        "TRUNCATE entries",
        "UPDATE blobs SET content = ''",
        "UPDATE runs SET epoch = 0",
    ],
)
async def test_nobody_changes_the_past(
    two: list[ContextLog], postgres: PostgresServer, schema: str, damage: str
) -> None:
    await two[0].create("run", {})
    await two[0].append("run", NOTE, epoch=1)
    with psycopg.connect(postgres.url, options=f"-c search_path={schema}", autocommit=True) as shell:
        with pytest.raises(psycopg.IntegrityError, match=r"immutable|never goes down"):
            shell.execute(damage)
        shell.execute("ALTER TABLE entries DISABLE TRIGGER entries_never_change")
        shell.execute("UPDATE entries SET payload = '{}' WHERE seq = 1")
    with pytest.raises(ProtocolError, match="its hash differs"):
        await two[0].verify("run")


async def test_what_does_not_let_us_in(postgres: PostgresServer, schema: str) -> None:
    with pytest.raises(InvalidValue, match="nowhere"):
        await postgres_log.open(postgres.url.replace("/postgres?", "/nowhere?"))
    with pytest.raises(InvalidValue, match="names no PostgreSQL database"):
        await postgres_log.open("postgresql://[")
    with pytest.raises(NoRights, match="role"):
        await postgres_log.open(postgres.url.replace("user=postgres", "user=nobody-known"))
    with psycopg.connect(postgres.url, autocommit=True) as shell:
        shell.execute("CREATE ROLE weak LOGIN")
    with pytest.raises(NoRights, match="refuses"):
        await postgres_log.open(postgres.url.replace("user=postgres", "user=weak"), schema=schema)


async def test_a_log_of_version_4_is_brought_forward_once(postgres: PostgresServer, schema: str) -> None:
    script = (GOLDEN / "context-log-4" / "postgres.sql").read_text().replace("CREATE SCHEMA perdure;", "")
    with psycopg.connect(postgres.url, autocommit=True) as shell:
        shell.execute(f"CREATE SCHEMA {schema};{script.replace('perdure.', f'{schema}.')}".encode())
    logs = await asyncio.gather(*(postgres_log.open(postgres.url, schema=schema) for _ in range(2)))
    await check_turns(logs[0])
    for log in logs:
        await log.close()


async def test_a_log_is_brought_forward_however_long_that_takes(
    postgres: PostgresServer, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "STATEMENT_S", 1)
    steps = {**postgres_schema.MIGRATIONS, 6: "SELECT pg_sleep(1.5);" + postgres_schema.MIGRATIONS[6]}
    monkeypatch.setattr(postgres_schema, "MIGRATIONS", steps)
    log = await postgres_log.open(postgres.url, schema=schema)
    await log.create("run", {})
    await log.close()


async def test_a_newer_version_is_refused(two: list[ContextLog], postgres: PostgresServer, schema: str) -> None:
    with psycopg.connect(postgres.url, options=f"-c search_path={schema}") as shell:
        shell.execute("UPDATE meta SET version = 99")
    with pytest.raises(ProtocolError, match="version 99") as refused:
        await postgres_log.open(postgres.url, schema=schema)
    assert refused.value.hint


async def test_a_database_that_is_read_only_writes_nothing(
    two: list[ContextLog], postgres: PostgresServer, schema: str
) -> None:
    await two[0].create("run", {})
    connection = two[0]._database._writer._connection  # type: ignore[attr-defined]
    await connection.execute("SET default_transaction_read_only = on")
    with pytest.raises(Unavailable, match="read-only"):
        await two[0].append("run", NOTE, epoch=1)
    assert await two[0].read("run") == []
    assert (await two[0].append("run", NOTE, epoch=1))[0].seq == 1  # on a new connection


async def test_one_that_is_refused_fails_alone(two: list[ContextLog]) -> None:
    await two[0].create("run", {})
    results = await asyncio.gather(
        two[0].append("run", NOTE, epoch=1),
        two[0].append("nobody", NOTE, epoch=1),
        two[0].append("run", NOTE, epoch=1, expected_seq=7),
        two[0].append("run", NOTE, epoch=1),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [list, NotFound, LogConflict, list]
    with pytest.raises(InvalidValue, match="NUL"):
        await two[0].append("run", [NewEntry(kind="note", key="a\0b")], epoch=1)


async def test_away_at_the_start(brittle: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.context.postgres.database.PATIENCE_S", 0.0)
    brittle.stop()
    with pytest.raises(Unavailable, match=r"does not answer: .*No such file or directory") as refused:
        await postgres_log.open(brittle.url)
    assert refused.value.hint


@pytest.mark.parametrize("how", ["stop", "crash", "kill"])
async def test_it_goes_away_and_comes_back_and_nothing_acknowledged_is_lost(
    brittle: PostgresServer, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.context.postgres.writer.PATIENCE_S", 0.0)
    monkeypatch.setattr(connections, "PATIENCE_S", 0.0)
    log = await postgres_log.open(brittle.url)
    runs = [f"run{n}" for n in range(4)]
    for run in runs:
        await log.create(run, {})
    acknowledged: dict[str, list[str]] = {run: [] for run in runs}
    refused = dict.fromkeys(runs, 0)
    enough, back, over = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def write(run: str) -> None:
        while not over.is_set():
            try:
                [entry] = await log.append(run, NOTE, epoch=1)
            except Unavailable:
                refused[run] += 1
                if all(refused.values()):
                    enough.set()
                await back.wait()
                continue
            acknowledged[run].append(entry.hash)
            if not back.is_set() and len(acknowledged[run]) == 20:
                enough.set()
            elif back.is_set() and len(acknowledged[run]) >= 50:
                return

    writers = [asyncio.create_task(write(run)) for run in runs]
    await asyncio.wait_for(enough.wait(), 30)
    enough.clear()
    if how == "kill":
        await asyncio.to_thread(brittle.kill)
    else:
        await asyncio.to_thread(brittle.stop, signal.SIGINT if how == "stop" else signal.SIGQUIT)
    await asyncio.wait_for(enough.wait(), 60)
    with pytest.raises(Unavailable):
        await log.read("run0")
    await asyncio.to_thread(brittle.start)
    back.set()
    await asyncio.wait_for(asyncio.gather(*writers), 60)
    for run in runs:
        found = [entry.hash for entry in await log.read(run)]
        assert [digest for digest in found if digest in set(acknowledged[run])] == acknowledged[run]
        assert (await log.verify(run)).entries == len(found)
    await log.close()


async def test_the_first_that_is_asked_after_a_restart_is_answered(brittle: PostgresServer) -> None:
    log = await postgres_log.open(brittle.url)
    await log.create("run", {})
    assert (await log.head("run")).seq == 0
    await asyncio.to_thread(brittle.stop)
    await asyncio.to_thread(brittle.start)  # all connections that were open are of no use, and nobody knows yet
    [entry] = await log.append("run", NOTE, epoch=1)
    await asyncio.to_thread(brittle.stop)
    await asyncio.to_thread(brittle.start)
    assert [found.hash for found in await log.read("run")] == [entry.hash]
    await log.close()


async def test_a_database_that_does_not_sync_its_commits_syncs_ours(brittle: PostgresServer) -> None:
    brittle.stop()
    brittle.set("synchronous_commit = off")
    brittle.set("wal_writer_delay = 10s")
    brittle.start()
    log = await postgres_log.open(brittle.url)
    await log.create("run", {})
    for _ in range(3):
        [entry] = await log.append("run", NOTE, epoch=1)
    await asyncio.to_thread(brittle.kill)
    await asyncio.to_thread(brittle.start)
    assert (await log.read("run"))[-1].hash == entry.hash
    await log.close()


async def test_a_log_that_is_closed_leaves_no_session(postgres: PostgresServer) -> None:
    """Not even where it was still connecting, and whoever closed it has it yet."""
    url, closed = postgres.new_database(), list[ContextLog]()
    for _ in range(5):
        closed.append(await postgres_log.open(url))
        await closed[-1].close()
    await postgres.until_unused(url)


async def test_an_older_backup_is_refused(brittle: PostgresServer, tmp_path: Path) -> None:
    with psycopg.connect(brittle.url, autocommit=True) as shell:
        shell.execute("CREATE DATABASE now")
    url = brittle.url.replace("/postgres?", "/now?")

    async def wrote(url: str, number: int) -> None:
        log = await postgres_log.open(url)
        try:
            await log.remember(tmp_path / "acknowledged")
            if not await log.heads():
                await log.create("run", {})
            for _ in range(number):
                await log.append("run", NOTE, epoch=1)
        finally:
            await log.close()

    await wrote(url, 2)
    await brittle.until_unused(url)
    with psycopg.connect(brittle.url, autocommit=True) as shell:
        shell.execute("CREATE DATABASE backup TEMPLATE now")
    await wrote(url, 2)
    with pytest.raises(Conflict, match="ends at entry 2"):
        await wrote(brittle.url.replace("/postgres?", "/backup?"), 1)
    await wrote(url, 1)


WRITER = """
import asyncio, sys
from perdure.context import postgres
from perdure.context.log import NewEntry

async def main():
    log = await postgres.open(sys.argv[1], schema=sys.argv[2])
    async def write(run):
        await log.create(run, {})
        for i in range(100000):
            [entry] = await log.append(run, [NewEntry(kind="note", payload={"i": i, "text": str(i) * 200})], epoch=1)
            sys.stdout.write(f"{run} {entry.seq} {entry.hash}\\n")
            sys.stdout.flush()
    await asyncio.gather(*(write(f"run{n}") for n in range(4)))

asyncio.run(main())
"""


@pytest.mark.parametrize("lines", [1, 50, 300])
async def test_acknowledged_entries_survive_a_killed_server(postgres: PostgresServer, schema: str, lines: int) -> None:
    words = [sys.executable, "-c", WRITER, postgres.url, schema]
    writer = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
    assert writer.stdout is not None
    said = [await asyncio.wait_for(writer.stdout.readline(), 60) for _ in range(lines)]
    writer.kill()
    said += (await writer.stdout.read()).splitlines(keepends=True)
    await writer.wait()
    acknowledged = [line.split() for line in said if line.endswith(b"\n") and len(line.split()) == 3]
    assert len(acknowledged) >= lines
    log = await postgres_log.open(postgres.url, schema=schema)
    for run in {run.decode() for run, _, _ in acknowledged}:
        found = {entry.seq: entry.hash for entry in await log.read(run, limit=1_000_000)}
        assert all(found[int(seq)] == digest.decode() for of, seq, digest in acknowledged if of.decode() == run)
        assert (await log.verify(run)).entries == len(found)
        assert (await log.append(run, NOTE, epoch=1))[0].seq == len(found) + 1  # no lock of the killed one is left
    await log.close()


async def test_a_lock_that_somebody_holds_is_told_in_time(
    postgres: PostgresServer, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "LOCK_S", 1)
    log = await postgres_log.open(postgres.url, schema=schema)
    await log.create("run", {})
    with psycopg.connect(postgres.url, options=f"-c search_path={schema}") as shell:
        shell.execute("LOCK TABLE entries IN ACCESS EXCLUSIVE MODE")
        for ask in (log.append("run", NOTE, epoch=1), log.read("run")):
            with pytest.raises(Unavailable, match="too slow") as refused:
                await asyncio.wait_for(ask, 20)
            assert "pg_stat_activity" in refused.value.hint
        shell.rollback()
    assert (await log.append("run", NOTE, epoch=1))[0].seq == 1
    await log.close()


class LostBeforeCommit(Faults):
    """At the next write the database is lost, and another server is given the number of the transaction that was."""

    def __init__(self, server: PostgresServer) -> None:
        super().__init__()
        self._server = server
        self.armed, self.was_given_again = False, False

    def reach(self, moment: str, points: Collection[str]) -> None:
        if not self.armed or moment != "before":
            return
        self.armed = False
        with psycopg.connect(self._server.url, autocommit=True) as looking:
            row = looking.execute("SELECT max(backend_xid::text::bigint) FROM pg_stat_activity").fetchone()
        assert row is not None and row[0] is not None
        self._server.kill()
        self._server.start()
        with psycopg.connect(self._server.url, autocommit=True) as other:
            given = 0
            while given < row[0]:
                found = other.execute("SELECT pg_current_xact_id()::text::bigint").fetchone()
                assert found is not None
                given = found[0]
        self.was_given_again = given == row[0]


@pytest.mark.parametrize("what", ["entries", "head", "kept", "run"])
async def test_a_write_that_was_lost_is_not_taken_for_another_one_with_its_number(
    brittle: PostgresServer, what: str
) -> None:
    """PostgreSQL gives a number again that it had given before a crash, where nothing of it was on the disk."""
    faults = LostBeforeCommit(brittle)
    log = await postgres_log.open(brittle.url, faults=faults)
    await log.create("run", {})
    head = await log.head("run")
    faults.armed = True
    with pytest.raises(Unavailable):
        if what == "entries":
            await log.append("run", NOTE, epoch=1, beside=[Beside(kind="queue", name="a", value=1)])
        elif what == "head":
            await log.append("run", [], epoch=1, head=NewHead(expected_version=head.version, value={"n": 1}))
        elif what == "kept":
            await log.keep("queue", "a", 1, expected_version=0)
        else:
            await log.create("other", {})
    assert faults.was_given_again
    assert (await log.head("run")).version == head.version
    assert await log.read("run") == []
    await log.append("run", NOTE, epoch=1)
    await log.close()


async def test_what_a_server_remembers_of_a_run_is_no_more_than_a_guess(two: list[ContextLog]) -> None:
    """Each time the other server has written since: it is the database that says what holds."""
    await two[0].create("run", {"n": 0})
    for writer in (0, 1, 0):
        await two[writer].append("run", NOTE, epoch=1)
    with pytest.raises(LogConflict):
        await two[1].append("run", NOTE, epoch=1, expected_seq=2)
    await two[1].append("run", NOTE, epoch=1, head=NewHead(expected_version=1, value={"n": 1}))
    with pytest.raises(LogConflict):
        await two[0].append("run", NOTE, epoch=1, head=NewHead(expected_version=1, value={"n": 2}))
    await two[0].append("run", NOTE, epoch=1, head=NewHead(expected_version=2, value={"n": 2}))
    await two[1].append("run", [], epoch=3)
    with pytest.raises(StaleEpoch):
        await two[0].append("run", NOTE, epoch=2)
    await two[1].fork("run", NOTE, epoch=3, parent=1, fork_seq=2)
    assert [(entry.branch, entry.seq) for entry in await two[0].append("run", NOTE, epoch=3)] == [(2, 4)]
    assert (await two[0].verify("run")).entries == 7
    assert (await two[0].head("run")).value == {"n": 2}


async def test_a_run_that_is_remembered_is_no_longer_written_without_its_lease(two: list[ContextLog]) -> None:
    ours, theirs = two[0].leases, two[1].leases
    assert ours is not None and theirs is not None
    await ours.begin("ours", {}, lasts_s=60.0)
    await theirs.begin("theirs", {}, lasts_s=60.0)
    await two[0].create("run", {})
    await two[0].append("run", NOTE, epoch=1)
    assert await theirs.remove("ours", None)
    with pytest.raises(LeaseLost, match="has lost its lease"):
        await two[0].append("run", NOTE, epoch=1)
    assert await theirs.take("run", "ours")
    await ours.begin("ours-again", {}, lasts_s=60.0)
    for _ in range(2):
        with pytest.raises(LeaseLost, match="taken over"):
            await two[0].append("run", NOTE, epoch=1)
    assert [entry.seq for entry in await two[1].append("run", NOTE, epoch=1)] == [2]


@pytest.mark.parametrize("was_here", [False, True])
async def test_a_log_that_two_servers_take_up_at_once_is_whole_or_not_there(
    two: list[ContextLog], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, was_here: bool
) -> None:
    monkeypatch.setattr(exporting, "BATCH_ROWS", 4)
    theirs = await sqlite.open(tmp_path / "log.db")
    await theirs.create("run", {})
    for _ in range(10):
        await theirs.append("run", NOTE, epoch=1)
    lines = [line async for line in theirs.export("run")]
    await theirs.close()

    async def fed(count: int, both_at: int = 0) -> AsyncIterator[bytes]:
        for number, line in enumerate(lines[:count]):
            if number == both_at > 0:
                with pytest.raises(ProtocolError, match="is cut"):
                    await two[1].take_up(fed(5))
            yield line

    if was_here:
        await two[0].take_up(fed(len(lines)))
        await two[0].prune("run")
    with pytest.raises(Conflict, match="not all there"):
        await two[0].take_up(fed(len(lines), 9))
    with pytest.raises(NotFound):
        await two[0].read("run")
    assert (await two[1].take_up(fed(len(lines)))).seq == 10
    assert (await two[0].verify("run")).entries == 10


class Before(Faults):
    """Does something just before the next write is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.do: Callable[[], None] | None = None

    def reach(self, moment: str, points: Collection[str]) -> None:
        do, self.do = self.do, None
        if do is not None:
            do()


def deafen(log: ContextLog) -> None:
    """What is sent from now on arrives, and its answer does not."""
    # The very connection of the writer: only so is one write cut, and no other.
    with socket.socket(fileno=os.dup(log._database._writer._connection.fileno())) as wire:  # type: ignore[attr-defined]
        wire.shutdown(socket.SHUT_RD)


async def test_a_write_that_was_never_sent_is_written_once(brittle: PostgresServer) -> None:
    faults = Before()
    log = await postgres_log.open(brittle.url, faults=faults)
    await log.create("run", {})
    first = await log.append("run", NOTE, epoch=1)

    def restart() -> None:
        brittle.kill()
        brittle.start()

    faults.do = restart
    second = await log.append("run", NOTE, epoch=1)
    assert faults.do is None
    assert [entry.hash for entry in await log.read("run")] == [first[0].hash, second[0].hash]
    await log.close()


async def test_a_write_whose_answer_was_lost_is_acknowledged(postgres: PostgresServer, schema: str) -> None:
    faults = Before()
    log = await postgres_log.open(postgres.url, schema=schema, faults=faults)
    await log.create("run", {})
    for seq in (1, 2):
        faults.do = lambda: deafen(log)
        [entry] = await log.append("run", NOTE, epoch=1)
        assert (entry.seq, faults.do) == (seq, None)
        assert (await log.read("run"))[-1].hash == entry.hash
    await log.close()


@pytest.mark.parametrize("ends", ["committed", "refused"])
async def test_a_write_that_nobody_answers_is_waited_for(postgres: PostgresServer, schema: str, ends: str) -> None:
    """It waits for a lock, its connection is lost, and it is committed, or not, long after that."""
    faults = Before()
    log = await postgres_log.open(postgres.url, schema=schema, faults=faults)
    await log.create("run", {})
    await log.append("run", NOTE, epoch=1)
    options = f"-c search_path={schema}"
    async with await psycopg.AsyncConnection.connect(postgres.url, options=options) as shell:
        await shell.execute("UPDATE runs SET epoch = epoch + 1")
        faults.do = lambda: deafen(log)
        writing = asyncio.create_task(log.append("run", NOTE, epoch=1))
        async with await psycopg.AsyncConnection.connect(postgres.url, autocommit=True) as looking:
            asked = "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%%pg_terminate_backend(pid) ELSE%%' AND pid <> %s"
            async with asyncio.timeout(30):
                while not await (await looking.execute(asked, (looking.info.backend_pid,))).fetchone():
                    assert not writing.done()
        if ends == "committed":
            await shell.rollback()
            assert [entry.seq for entry in await asyncio.wait_for(writing, 30)] == [2]
        else:
            await shell.commit()
            with pytest.raises(StaleEpoch):
                await asyncio.wait_for(writing, 30)
    assert (await log.head("run")).seq == (2 if ends == "committed" else 1)
    await log.close()


async def test_a_value_larger_than_what_a_socket_takes_at_once(postgres: PostgresServer, schema: str) -> None:
    log = await postgres_log.open(postgres.url, schema=schema)
    await log.create("run", {})
    text = random.Random(1).randbytes(12_000_000).hex()
    for _ in range(2):
        await log.append("run", [NewEntry(kind="note", payload={"text": text})], epoch=1)
        text = text[::-1]
    assert (await log.read("run"))[1].payload == {"text": text[::-1]}
    await log.close()


def test_rows_become_arrays_as_postgresql_reads_them(postgres: PostgresServer) -> None:
    kinds = ["text", "bytea", "bigint", "int", "float8"]
    rows: list[tuple[object, ...]] = [
        ("owls", b"\0\xff", -(2**63), True, 1e-300),
        (None, None, None, None, None),
        ('Ünïcödé, "quoted"', b"", 2**63 - 1, -1, 0.1),
    ]
    queries = ", ".join(f"to_jsonb(${n}::{kind}[])" for n, kind in enumerate(kinds, 1))
    for some in (rows, rows[:1]):
        columns = arrays.encoded(kinds, some)
        with psycopg.connect(postgres.url, client_encoding="UTF8") as shell:
            result = shell.pgconn.exec_params(f"SELECT {queries}".encode(), columns, param_formats=[1] * len(kinds))
        found = [json.loads(result.get_value(0, n) or b"") for n in range(len(kinds))]
        found[1] = [value if value is None else bytes.fromhex(value[2:]) for value in found[1]]
        assert list(zip(*found, strict=True)) == [tuple(row) for row in some]
