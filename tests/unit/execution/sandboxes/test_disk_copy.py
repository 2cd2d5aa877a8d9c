"""The disk of a machine that runs on, at one moment; and the disks that are kept of those that do not."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import NoSpace
from perdure.execution.sandboxes import disk, keptdisks
from perdure.execution.sandboxes.record import Folder
from perdure.execution.snapshots import diskchanges
from perdure.formats.blockmap import BLOCK
from perdure.formats.diskindex import CHUNK, DiskIndex
from perdure.host.paths import Home

DEADLINE_S = 30.0
SIZE = 64 * CHUNK
SNAPSHOT = "sha256:" + "5" * 64


def write(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), data, at)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.touch()
    os.truncate(path, SIZE)
    write(path, 8 * CHUNK, os.urandom(10 * CHUNK))
    return path


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("late", [True, False])
def test_it_holds_what_changed_until_it_stood_still(source: Path, tmp_path: Path, indexed: bool, late: bool) -> None:
    before = source.read_bytes()
    found = diskchanges.changes(source, None)
    write(source, 9 * CHUNK + 5, b"early")
    target = tmp_path / "target"
    copy = disk.Copy(source, target, DiskIndex(SNAPSHOT, found.stamp, found.chunks) if indexed else None)
    copy.begin()
    if late:
        write(source, 30 * CHUNK, b"late")
    copy.finish()
    now = source.read_bytes()
    write(source, 50 * CHUNK, b"after")
    changes = copy.changes()
    assert target.stat().st_size == SIZE
    assert changes.chunks == {number: value for number, value in diskchanges.chunks_of(source).items() if number != 50}
    if not indexed:
        assert changes.ranges is None
        assert target.read_bytes() == now
        return
    each = CHUNK // BLOCK
    assert changes.ranges == [(9 * each, 10 * each), *([(30 * each, 31 * each)] if late else [])]
    merged = bytearray(before)
    for first, end in changes.ranges:
        with target.open("rb") as file:
            file.seek(first * BLOCK)
            merged[first * BLOCK : end * BLOCK] = file.read((end - first) * BLOCK)
    assert bytes(merged) == now
    # what is written after it is seen by the next one
    again = diskchanges.changes(source, DiskIndex(SNAPSHOT, changes.stamp, changes.chunks))
    assert again.ranges == [(50 * each, 51 * each)]


def test_nothing_is_copied_of_a_disk_that_nobody_wrote_to(source: Path, tmp_path: Path) -> None:
    found = diskchanges.changes(source, None)
    copy = disk.Copy(source, tmp_path / "target", DiskIndex(SNAPSHOT, found.stamp, found.chunks))
    copy.begin()
    copy.finish()
    assert copy.changes().ranges == []


def test_a_clone_is_the_same(source: Path, tmp_path: Path) -> None:
    disk.clone(source, tmp_path / "clone")
    assert (tmp_path / "clone").read_bytes() == source.read_bytes()
    with pytest.raises(FileExistsError):
        disk.clone(source, tmp_path / "clone")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """With three kept disks of 64 KiB, "a" kept first."""
    home = Home(tmp_path / "home", tmp_path / "cache").make()
    for name in "abc":
        (home.sandboxes / name).mkdir()
        fresh = home.sandboxes / name / "fresh"
        fresh.write_bytes(os.urandom(CHUNK))
        fresh.rename(home.sandboxes / name / "disk")
    return home


def kept(home: Home) -> str:
    return "".join(sorted(path.parent.name for path in home.sandboxes.glob("*/disk")))


def test_the_oldest_kept_disks_go_first(home: Home) -> None:
    assert keptdisks.trim(home.sandboxes, 3 * CHUNK) == 0
    assert kept(home) == "abc"
    assert keptdisks.trim(home.sandboxes, 2 * CHUNK) == CHUNK
    assert kept(home) == "bc"
    assert keptdisks.trim(home.sandboxes, 0) == 2 * CHUNK
    assert kept(home) == ""


def test_kept_disks_make_room(home: Home) -> None:
    disk.admit(home, home.sandboxes, 0, "a test")
    assert kept(home) == "abc"
    with pytest.raises(NoSpace, match="a test needs"):
        disk.admit(home, home.sandboxes, 1 << 60, "a test")
    assert kept(home) == ""


def test_only_as_many_go_as_are_lacking(home: Home) -> None:
    free = shutil.disk_usage(home.sandboxes).free
    assert keptdisks.trim(home.sandboxes, floor_bytes=free // 2) == 0
    assert kept(home) == "abc"
    assert 0 < keptdisks.floor_of(home.sandboxes) <= keptdisks.FLOOR_BYTES
    with pytest.raises(NoSpace):
        disk.admit(home, home.sandboxes, 1 << 60, "a compaction", trims=False)
    assert kept(home) == "abc"


async def test_a_limit_that_was_lowered_counts_from_the_start_of_the_node(home: Home) -> None:
    watching = asyncio.create_task(keptdisks.watch(home.sandboxes, CHUNK))
    async with asyncio.timeout(DEADLINE_S):
        while kept(home) != "c":  # noqa: ASYNC110 - another thread unlinks them
            await asyncio.sleep(0.005)
    watching.cancel()


async def test_a_full_disk_without_kept_ones_keeps_nobody_busy(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    trims: list[int] = []
    monkeypatch.setattr(keptdisks, "floor_of", lambda sandboxes: 1 << 62)
    monkeypatch.setattr(keptdisks, "trim", lambda *values, **named: trims.append(1))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(keptdisks.watch(home.sandboxes, 0), 0.3)
    assert len(trims) == 2  # to the limit, and for the floor; then it waits


def test_a_sandbox_goes_while_its_kept_disk_goes(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    unlink, trimmed = os.unlink, []

    def overtaken(path: Any, **named: Any) -> None:
        if Path(os.fsdecode(path)).name == "disk" and not trimmed:
            trimmed.append(True)
            keptdisks.trim(home.sandboxes, 0)
        unlink(path, **named)

    monkeypatch.setattr(os, "unlink", overtaken)
    Folder(home.sandboxes / "a").remove()
    assert trimmed
    assert not (home.sandboxes / "a").exists()
