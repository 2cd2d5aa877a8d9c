"""Fixtures: a house that is up, and the provider that its models are asked at. A conftest imports them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from perdure.testing.house import House, Provider

__all__ = ["house", "provider"]


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
