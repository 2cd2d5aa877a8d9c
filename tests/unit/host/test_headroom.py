"""The room that is kept back for removals: there when there is room, whole, and nobody's to delete but who needs it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.host import headroom
from perdure.host.paths import Home
from perdure.testing import smalldisks


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with smalldisks.mounted(tmp_path / "small", 4) as small:
        yield Home(small, tmp_path / "cache")


def kept(home: Home) -> int:
    path = home.root / "headroom"
    return path.stat().st_blocks * 512 if path.exists() else -1


def test_it_is_made_while_there_is_room(home: Home) -> None:
    headroom.keep(home)
    assert kept(home) == headroom.HEADROOM_BYTES
    headroom.keep(home)
    assert kept(home) == headroom.HEADROOM_BYTES


def test_one_that_was_cut_short_becomes_whole(home: Home) -> None:
    """By a kill, or by another that ends at the same moment."""
    (home.root / "headroom").touch()
    headroom.keep(home)
    assert kept(home) == headroom.HEADROOM_BYTES


@pytest.mark.parametrize("full", [smalldisks.fill, smalldisks.fill_names])
def test_it_is_given_where_there_is_none_and_comes_back(home: Home, full: object) -> None:
    assert callable(full)
    headroom.keep(home)
    with headroom.given(home):
        assert kept(home) == headroom.HEADROOM_BYTES  # there is room: it is not needed
    full(home.root, 0)
    with headroom.given(home):
        assert kept(home) == -1
        (home.root / "small-file").write_bytes(b"x" * 4096)
        smalldisks.clear(home.root)  # what is removed
    assert kept(home) == headroom.HEADROOM_BYTES


def test_what_was_just_given_is_not_taken_back(home: Home) -> None:
    headroom.keep(home)
    smalldisks.fill(home.root, 0)
    with headroom.given(home):
        assert kept(home) == -1
    assert kept(home) == -1
