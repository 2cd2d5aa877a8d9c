"""A PostgreSQL that goes away, and comes back: nothing that was acknowledged is lost."""

from __future__ import annotations

import asyncio
import signal
import sys

import pytest

from perdure.context import postgres as postgres_log
from perdure.context.log import NewEntry
from perdure.context.postgres import connections
from perdure.errors import Unavailable
from perdure.testing.postgres import PostgresServer

NOTE = [NewEntry(kind="note", payload={"n": 1, "text": "x" * 600})]


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
