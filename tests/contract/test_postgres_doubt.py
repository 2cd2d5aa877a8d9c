"""Writes on PostgreSQL whose commit nobody answered: each is acknowledged, or refused, as the database has it."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Collection

import psycopg
import pytest

from perdure.context import postgres as postgres_log
from perdure.context.faults import Faults
from perdure.context.log import Beside, ContextLog, NewEntry, NewHead
from perdure.errors import StaleEpoch, Unavailable
from perdure.testing.postgres import PostgresServer

NOTE = [NewEntry(kind="note", payload={"n": 1, "text": "x" * 600})]


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
