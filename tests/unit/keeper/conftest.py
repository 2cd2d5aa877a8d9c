"""Fixtures: where a keeper of one machine works."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.keeper.loop import Loop


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine's folder, in tmpfs as below the line, and the working directory."""
    folder = Path(tempfile.mkdtemp(prefix="perdure-collector-", dir="/dev/shm"))
    monkeypatch.chdir(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()
