"""Fixtures: PostgreSQL servers, and the context log on each database. A conftest imports them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from perdure.context import postgres as postgres_log
from perdure.context import sqlite
from perdure.context.log import ContextLog
from perdure.testing.postgres import PostgresServer, binaries, postgres_server

__all__ = ["brittle", "log", "new_log", "postgres", "schema", "two_logs"]

Opener = Callable[[], Awaitable[ContextLog]]  # of one log: again and again

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    if binaries() is None:
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    with postgres_server() as server:
        yield server


@pytest.fixture
def brittle() -> Iterator[PostgresServer]:
    """A server of this test alone, to be stopped."""
    with postgres_server() as server:
        yield server


@pytest.fixture
def schema() -> str:
    """The name of one that is not there yet."""
    return f"mine_{next(_numbers)}"


@pytest.fixture
async def two_logs(postgres: PostgresServer, schema: str) -> AsyncIterator[list[ContextLog]]:
    """One log, opened by two servers at the same moment."""
    logs = await asyncio.gather(*(postgres_log.open(postgres.url, schema=schema) for _ in range(2)))
    yield logs
    for log in logs:
        await log.close()


@pytest.fixture(params=["sqlite", "postgres"])
def new_log(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Opener]:
    """Makes an opener of a log that is not there yet, on each database."""
    if request.param == "sqlite":

        def in_file() -> Opener:
            path = tmp_path / f"log-{next(_numbers)}.db"
            return lambda: sqlite.open(path)

        return in_file
    server: PostgresServer = request.getfixturevalue("postgres")

    def in_schema() -> Opener:
        schema = f"log_{next(_numbers)}"
        return lambda: postgres_log.open(server.url, schema=schema)

    return in_schema


@pytest.fixture
async def log(new_log: Callable[[], Opener]) -> AsyncIterator[ContextLog]:
    opened = await new_log()()
    yield opened
    await opened.close()
