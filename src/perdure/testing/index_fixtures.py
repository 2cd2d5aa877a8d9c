"""A fixture: an index of packages that pip asks. Tests import it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from perdure.testing.packageindex import Index, serving, settings

__all__ = ["index"]


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    made = Index()
    with serving(made):
        for name, value in settings(made).items():
            monkeypatch.setenv(name, value)
        yield made
