"""What is particular to the log on PostgreSQL: who is let in, its versions, a past that nobody changes."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import psycopg
import pytest

from perdure.context import postgres as postgres_log
from perdure.context.log import ContextLog, NewEntry
from perdure.context.postgres import arrays, connections
from perdure.context.postgres import schema as postgres_schema
from perdure.errors import Conflict, InvalidValue, LogConflict, NoRights, NotFound, ProtocolError, Unavailable
from perdure.testing.oldlogs import check_turns
from perdure.testing.postgres import PostgresServer

GOLDEN = Path(__file__).parents[1] / "golden"
NOTE = [NewEntry(kind="note", payload={"n": 1, "text": "x" * 600})]


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
    two_logs: list[ContextLog], postgres: PostgresServer, schema: str, damage: str
) -> None:
    await two_logs[0].create("run", {})
    await two_logs[0].append("run", NOTE, epoch=1)
    with psycopg.connect(postgres.url, options=f"-c search_path={schema}", autocommit=True) as shell:
        with pytest.raises(psycopg.IntegrityError, match=r"immutable|never goes down"):
            shell.execute(damage)
        shell.execute("ALTER TABLE entries DISABLE TRIGGER entries_never_change")
        shell.execute("UPDATE entries SET payload = '{}' WHERE seq = 1")
    with pytest.raises(ProtocolError, match="its hash differs"):
        await two_logs[0].verify("run")


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


async def test_a_newer_version_is_refused(two_logs: list[ContextLog], postgres: PostgresServer, schema: str) -> None:
    with psycopg.connect(postgres.url, options=f"-c search_path={schema}") as shell:
        shell.execute("UPDATE meta SET version = 99")
    with pytest.raises(ProtocolError, match="version 99") as refused:
        await postgres_log.open(postgres.url, schema=schema)
    assert refused.value.hint


async def test_a_database_that_is_read_only_writes_nothing(
    two_logs: list[ContextLog], postgres: PostgresServer, schema: str
) -> None:
    await two_logs[0].create("run", {})
    # mypy sees a Database, which has no connections: it is the session of the writer alone that becomes read-only.
    connection = two_logs[0]._database._writer._connection  # type: ignore[attr-defined]
    await connection.execute("SET default_transaction_read_only = on")
    with pytest.raises(Unavailable, match="read-only"):
        await two_logs[0].append("run", NOTE, epoch=1)
    assert await two_logs[0].read("run") == []
    assert (await two_logs[0].append("run", NOTE, epoch=1))[0].seq == 1  # on a new connection


async def test_one_that_is_refused_fails_alone(two_logs: list[ContextLog]) -> None:
    await two_logs[0].create("run", {})
    results = await asyncio.gather(
        two_logs[0].append("run", NOTE, epoch=1),
        two_logs[0].append("nobody", NOTE, epoch=1),
        two_logs[0].append("run", NOTE, epoch=1, expected_seq=7),
        two_logs[0].append("run", NOTE, epoch=1),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [list, NotFound, LogConflict, list]
    with pytest.raises(InvalidValue, match="NUL"):
        await two_logs[0].append("run", [NewEntry(kind="note", key="a\0b")], epoch=1)


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
