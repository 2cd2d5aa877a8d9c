"""Fixtures: a server with workers, and the provider that its models are asked at."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from perdure.host.paths import Home
from perdure.testing.house import Provider
from perdure.testing.house_fixtures import provider
from perdure.testing.index_fixtures import index
from perdure.testing.workers import WorkerHouse

__all__ = ["index", "provider", "road"]


@pytest.fixture
async def road(tmp_path: Path, provider: Provider) -> AsyncIterator[WorkerHouse]:
    made = WorkerHouse(Home(tmp_path / "home", tmp_path / "cache"), provider.url)
    await made.up()
    yield made
    await made.down()
