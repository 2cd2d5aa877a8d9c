"""Fixtures: a house that is up, the provider that its models are asked at, and the server's API over that house. A
conftest imports them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from perdure.host.paths import Home
from perdure.testing.house import House, Provider
from perdure.testing.served import Served

__all__ = ["house", "provider", "served"]


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    made = Provider()
    await made.open()
    yield made
    await made.close()


@pytest.fixture
async def house(tmp_path: Path, provider: Provider) -> AsyncIterator[House]:
    made = House(tmp_path, provider.url)
    await made.up()
    yield made
    await made.machines.close()
    await made.down()


@pytest.fixture
async def served(house: House, tmp_path: Path) -> AsyncIterator[Served]:
    made = Served(house, Home(tmp_path / "home", tmp_path / "cache").make())
    await made.up()
    yield made
    await made.runner.cleanup()
