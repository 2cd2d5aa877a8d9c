"""What the cache of frames holds at most, and what it does on a full disk."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from perdure.errors import NoSpace
from perdure.execution.snapshots import cachefile
from perdure.testing.stores import Shelf, frame_of


def test_the_layer_that_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, limit_bytes=3 * 9 * 64 << 10)
    made = [shelf.layer(seed)[0] for seed in range(5)]
    with shelf.cache.open(made[0], shelf.folder.url) as pinned:
        pinned.fetch(range(8))
        for descriptor in made[1:]:
            with shelf.open(descriptor) as layer:
                layer.fetch(range(8))
            shelf.settle()
        assert [shelf.path(descriptor).exists() for descriptor in made] == [True, False, False, True, True]
        assert [shelf.record(descriptor).exists() for descriptor in made] == [True, False, False, True, True]
        assert all(map(pinned.present, range(8)))
    with shelf.open(made[1]) as layer:  # it comes again, and now the first one may go
        layer.fetch(range(8))
    shelf.settle()
    assert shelf.path(made[1]).exists()
    held = sum(path.stat().st_blocks * 512 for path in (tmp_path / "cache").iterdir())
    assert held <= shelf.limit_bytes
    shelf.cache.close()


def full_disk(monkeypatch: pytest.MonkeyPatch, is_full: Callable[[], bool]) -> None:
    """The cache's writes fail while it is."""
    real = cachefile.write_at

    def write_at(file: int, offset: int, data: bytes) -> None:
        if is_full():
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file, offset, data)

    monkeypatch.setattr(cachefile, "write_at", write_at)


def test_a_full_disk_evicts_what_is_not_used(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    idle, used = shelf.layer(1)[0], shelf.layer(2)
    with shelf.open(idle) as layer:
        layer.fetch(range(8))
    shelf.settle()
    with shelf.open(used[0]) as layer:
        full_disk(monkeypatch, lambda: shelf.path(idle).exists())
        assert layer.frame(2) == frame_of(used[1], 2)
    assert not shelf.path(idle).exists()


def test_a_disk_that_stays_full_is_told_and_nothing_counts(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    descriptor, content = shelf.layer(1)
    full = [True]
    full_disk(monkeypatch, lambda: full[0])
    with pytest.raises(NoSpace):
        shelf.open(descriptor)
    assert list((shelf.root / "cache").iterdir()) == []
    full[0] = False
    with shelf.open(descriptor) as layer:
        full[0] = True
        with pytest.raises(NoSpace):
            layer.fetch([3])
        assert not layer.present(3)
        full[0] = False
        assert layer.frame(3) == frame_of(content, 3)


def test_what_another_process_uses_is_not_evicted(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, limit_bytes=1)
    other = shelf.opened()
    descriptor, content = shelf.layer(1)
    another, _ = shelf.layer(2)
    with other.open(descriptor, shelf.folder.url) as used:
        used.fetch([0])
        with shelf.open(another) as layer:
            layer.fetch([0])
        shelf.settle()
        assert not shelf.path(another).exists()
        assert shelf.path(descriptor).exists()
        assert used.frame(0) == frame_of(content, 0)
    other.close()
    shelf.cache.close()
