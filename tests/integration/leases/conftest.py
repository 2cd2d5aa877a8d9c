"""Fixtures: a PostgreSQL server, houses that share a database on it, and the provider of their models."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from perdure.context.postgres import open as open_log
from perdure.testing.house import House, Provider
from perdure.testing.house_fixtures import provider
from perdure.testing.postgres import PostgresServer
from perdure.testing.postgres_fixtures import postgres

__all__ = ["houses", "postgres", "provider"]

_numbers = itertools.count()


@pytest.fixture
async def houses(tmp_path: Path, provider: Provider, postgres: PostgresServer) -> AsyncIterator[Callable[[], House]]:
    """Makes houses, each with its machines, on one database. Those that are up are down afterwards."""
    schema, made = f"leases_{next(_numbers)}", list[House]()

    def make() -> House:
        house = House(tmp_path, provider.url, lambda: open_log(postgres.url, schema=schema))
        made.append(house)
        return house

    yield make
    for house in made:
        await house.machines.close()
        await house.down()
