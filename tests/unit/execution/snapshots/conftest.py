"""A store and templates in a temporary folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perdure.testing.snapshots import Bench
from perdure.testing.stores import Shelf


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def new_bench(tmp_path: Path) -> Callable[[], Bench]:
    """For property tests: a fresh bench for each example."""
    count = iter(range(1 << 30))

    def make() -> Bench:
        return Bench(tmp_path / str(next(count)))

    return make


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    shelf = Shelf(tmp_path)
    yield shelf
    shelf.remote.gate.set()
    shelf.cache.close()
