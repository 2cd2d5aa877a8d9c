"""The context log beside the bare database under it: one fully synced insert per transaction, on the same disk.

Appends of a small entry, one after the other and of 64 runs at once; and the bytes that a conversation of a hundred
turns costs, each with the output of a tool and sent again whole, beside the bytes that are new in it: in a log that has
another run already, and as the first of an empty database, whose tables each begin with pages of their own.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sqlite3
import statistics
import string
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import psycopg
from report import Report

from perdure.context import postgres, sqlite
from perdure.context.log import ContextLog, NewEntry
from perdure.testing.postgres import PostgresServer, binaries, postgres_server

SECONDS = 1.0
ROUNDS = 5
RUNS = 64
TURNS, OUTPUT_BYTES = 100, 5000
PAYLOAD = {"request": "sha256:" + "0" * 64, "name": "a step", "result": {"count": 7, "text": "who? " * 30}}
ROW = str(PAYLOAD).encode()
TABLE = "CREATE TABLE IF NOT EXISTS steps (run_id TEXT, seq INTEGER, payload {blob}, PRIMARY KEY (run_id, seq))"

Open = Callable[[], Awaitable[ContextLog]]


def add(report: Report) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _logs(report, "SQLite", lambda: _bare_sqlite(folder / "bare.db"), lambda: sqlite.open(folder / "log.db"))
        talk = folder / "talk.db"
        _sizes(report, "SQLite", lambda: sqlite.open(talk), lambda: _file_bytes(talk))
    if binaries() is None:
        return
    with postgres_server() as server:
        _logs(report, "PostgreSQL", lambda: _bare_postgres(server), lambda: postgres.open(server.url))
        _sizes(
            report,
            "PostgreSQL",
            lambda: postgres.open(server.url, schema="talk"),
            lambda: _schema_bytes(server),
        )


def _file_bytes(path: Path) -> int:
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path.stat().st_size


def _schema_bytes(server: PostgresServer) -> int:
    query = "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relnamespace = 'talk'::regnamespace"
    with psycopg.connect(server.url, autocommit=True) as db:
        row = db.execute(query + " AND relkind = 'r'").fetchone()
    return int(row[0]) if row else 0


async def _empty(opener: Open) -> None:
    await (await opener()).close()


def _logs(report: Report, database: str, bare_rate: Callable[[], float], opener: Open) -> None:
    """In turn, as the machine is not the same from one moment to the next."""
    bare, rates = f"{database}: a synced insert", []
    for _ in range(ROUNDS):
        rates.append((bare_rate(), *asyncio.run(_appends(opener))))
    base, one, many = (statistics.median(found) for found in zip(*rates, strict=True))
    report.add(bare, base, "1/s")
    goal = "ratio >= 0.6" if database == "SQLite" else ""  # across a socket, with three statements
    report.add(f"context log on {database}: appends of one run", one, "1/s", over=bare, goal=goal)
    report.add(f"context log on {database}: of {RUNS} runs at once", many, "1/s", over=bare, goal="ratio >= 5")


def _sizes(report: Report, database: str, opener: Open, stored_bytes: Callable[[], int]) -> None:
    """Two conversations, one after the other, with nothing in common."""
    asyncio.run(_empty(opener))
    sizes, new = [stored_bytes()], 0
    for seed in (1, 2):
        new = asyncio.run(_conversation(opener, seed))
        sizes.append(stored_bytes())
    name = f"context log: what is new in a conversation of {TURNS} turns"
    if name not in {figure.name for figure in report.figures}:
        report.add(name, new / 1e6, "MB")
    first, later = (after - before for before, after in itertools.pairwise(sizes))
    report.add(f"context log on {database}: its bytes", later / 1e6, "MB", over=name, goal="ratio <= 1.2")
    report.add(f"context log on {database}: its bytes, first of all", first / 1e6, "MB", over=name)


def _bare_sqlite(path: Path) -> float:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute(TABLE.format(blob="BLOB"))
        run = str(time.time())
        return _rate(lambda seq: db.execute("INSERT INTO steps VALUES (?, ?, ?)", (run, seq, ROW)))


def _bare_postgres(server: PostgresServer) -> float:
    with psycopg.connect(server.url, autocommit=True) as db:
        db.execute(TABLE.format(blob="BYTEA"))
        run = str(time.time())
        return _rate(lambda seq: db.execute("INSERT INTO steps VALUES (%s, %s, %s)", (run, seq, ROW)))


def _rate(insert: Callable[[int], object]) -> float:
    begun, number = time.perf_counter(), 0
    while time.perf_counter() - begun < SECONDS:
        number += 1
        insert(number)
    return number / (time.perf_counter() - begun)


async def _appends(opener: Open) -> tuple[float, float]:
    log = await opener()
    try:
        rates = []
        for runs in (1, RUNS):
            names = [f"{time.time()}-{number}" for number in range(runs)]
            for name in names:
                await log.create(name, {})
            counts = dict.fromkeys(names, 0)
            begun = time.perf_counter()

            async def write(name: str, begun: float = begun, counts: dict[str, int] = counts) -> None:
                while time.perf_counter() - begun < SECONDS:
                    entry = NewEntry(kind="step.result", key=f"main/{counts[name]}", payload=PAYLOAD)
                    await log.append(name, [entry], epoch=1)
                    counts[name] += 1

            await asyncio.gather(*(write(name) for name in names))
            rates.append(sum(counts.values()) / (time.perf_counter() - begun))
        return rates[0], rates[1]
    finally:
        await log.close()


async def _conversation(opener: Open, seed: int) -> int:
    """The bytes that are new in it: text as tools print it, which packs to some extent."""
    log, made, unique = await opener(), random.Random(seed), 0
    words = ["".join(made.choices(string.ascii_lowercase, k=made.randint(2, 9))) for _ in range(3000)]
    try:
        name = f"talk-{seed}"
        await log.create(name, {"state": "running"})
        messages: list[dict[str, str]] = []
        for turn in range(TURNS):
            text = ""
            while len(text) < OUTPUT_BYTES:
                text += made.choice(words) + " "
            messages.append({"role": "tool", "content": text})
            asked = NewEntry(kind="model.intent", key=f"main/{turn}", payload={"messages": list(messages)})
            answer = f"turn {turn}: {text[:100]}"
            messages.append({"role": "assistant", "content": answer})
            told = NewEntry(kind="model.committed", key=f"main/{turn}", payload={"text": answer})
            await log.append(name, [asked], epoch=1)
            await log.append(name, [told], epoch=1)
            unique += len(text) + len(answer)
        return unique
    finally:
        await log.close()


if __name__ == "__main__":
    add(Report())
