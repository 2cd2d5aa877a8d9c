"""The disk is really full at every page, and at every new file, of a suspend, a resume, and what lies beside a sandbox.

A suspend that is refused leaves the machine running, a resume the sandbox suspended; both succeed once there is room,
and whatever disk is kept is the right one. What only saves time is simply not there.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.errors import NoSpace
from perdure.execution.sandboxes import disk
from perdure.execution.snapshots import diskchanges
from perdure.execution.snapshots.care import verify
from perdure.formats.diskindex import HASH_BYTES, DiskIndex, Stamp
from perdure.model import SandboxState
from perdure.testing import smalldisks, stillmachines
from perdure.testing.dying import BOX, BOX_WRITES
from perdure.testing.keptdisks import Lived, kept_in, restamp, stored, written
from perdure.testing.snapshots import block
from perdure.testing.stillmachines import StillSandbox
from perdure.testing.stores import Node

pytestmark = pytest.mark.timeout(300)
SIZE_MIB = 16
AFTER = 8  # rooms that are tried once one was enough: for what is then only not kept
ROOM_MAX = 300
full = pytest.mark.parametrize("full", ["pages", "names"])


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    with smalldisks.mounted(tmp_path / "small", SIZE_MIB) as folder:
        yield folder


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Lived:
    return Lived(tmp_path_factory.mktemp("lived"))


@pytest.fixture
def no_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is always kept free would refuse everything here, long before anything is written."""
    monkeypatch.setattr(disk, "RESERVE_BYTES", 0)


def fill(small: Path, full: str, room: int) -> None:
    (smalldisks.fill if full == "pages" else smalldisks.fill_names)(small, room)


def names_in(box: StillSandbox) -> set[str]:
    return {path.name for path in box.folder.root.iterdir()}


async def check(node: Node, box: StillSandbox, disk: bytes) -> None:
    """It was suspended with this disk: it goes on with it, and so does its next snapshot."""
    assert stored(node, str(box.record.parent)) == disk
    assert kept_in(node.root) in (None, disk)
    assert names_in(box) <= {"sandbox.json", "log", "disk", "disk-index"}
    box.writes = {7: block(9007)}
    await box.resume()
    info = await box.suspend()
    assert stored(node, info.digest) == kept_in(node.root) == written(disk, box.writes)
    assert verify.whole(node.store, templates=node.templates).findings == []


async def awake(node: Node) -> StillSandbox:
    """BOX, which runs and has changed one more block."""
    box = await stillmachines.started(node.root, node.store, BOX)
    box.writes = BOX_WRITES | {33: block(33)}
    await box.resume()
    return box


@full
async def test_a_suspend(lived: Lived, small: Path, full: str, no_reserve: None) -> None:
    machine = written(lived.disks[lived.line[-1]], BOX_WRITES | {33: block(33)})
    refused, done, kept = 0, 0, []
    for room in range(ROOM_MAX):
        root = small / "node"
        shutil.copytree(lived.root, root)
        with Node(root) as node:
            box = await awake(node)
            fill(small, full, room)
            try:
                await box.suspend()
            except NoSpace as error:
                refused += 1
                assert error.hint
                assert box.state is SandboxState.RUNNING
                assert (await box.need_machine().request("stat"))["state"] == "running"
                assert box.folder.overlay(box.record.generation).read_bytes() == machine
                assert names_in(box) <= {"sandbox.json", "log", "disk-index", f"machine-{box.record.generation}"}
                assert node.left_over() == []
                assert node.store.digests() == lived.line
                smalldisks.clear(small)
                await box.suspend()
            else:
                done += 1
                kept.append(kept_in(root) is not None)
                smalldisks.clear(small)
            assert node.left_over() == []
            await check(node, box, machine)
        shutil.rmtree(root)
        if done == AFTER:
            break
    assert refused > 3
    assert kept == ([False] if full == "pages" else [True]) * AFTER


@full
@pytest.mark.parametrize("indexed", [True, False])
async def test_a_checkpoint(lived: Lived, small: Path, indexed: bool, full: str, no_reserve: None) -> None:
    before = written(lived.disks[lived.line[-1]], BOX_WRITES | {33: block(33)})
    refused = 0
    for room in range(ROOM_MAX):
        root = small / "node"
        shutil.copytree(lived.root, root)
        with Node(root) as node:
            box = await awake(node)
            overlay = box.folder.overlay(box.record.generation)
            if not indexed:  # then all of the disk is copied
                box.folder.disk_index.unlink()
            fill(small, full, room)
            try:
                info = await box.checkpoint()
            except NoSpace as error:
                refused += 1
                assert error.hint
                assert node.store.digests() == lived.line
                smalldisks.clear(small)
                info = None
            assert box.state is SandboxState.RUNNING
            assert (await box.need_machine().request("stat"))["state"] == "running"
            assert overlay.read_bytes() == before
            assert names_in(box) <= {"sandbox.json", "log", "disk-index", f"machine-{box.record.generation}"}
            assert node.left_over() == []
            made = info or await box.checkpoint()
            assert stored(node, made.digest) == before
            smalldisks.clear(small)
            await box.suspend()
            await check(node, box, before)
        shutil.rmtree(root)
        if info is not None:
            break
    assert info is not None and refused > 5


@full
@pytest.mark.parametrize("has_disk", [True, False], ids=["kept", "not-kept"])
async def test_a_resume(lived: Lived, small: Path, has_disk: bool, full: str, no_reserve: None) -> None:
    before = lived.disks[lived.line[-1]]
    refused, done = 0, 0
    for room in range(ROOM_MAX):
        root = small / "node"
        shutil.copytree(lived.root, root)
        with Node(root) as node:
            box = await stillmachines.started(root, node.store, BOX)
            if has_disk:
                restamp(root)
            else:
                box.folder.disk.unlink()
            fill(small, full, room)
            try:
                await box.resume()
            except NoSpace as error:
                refused += 1
                assert error.hint
                assert box.state is SandboxState.SUSPENDED
                assert kept_in(root) in (None, before)
                assert names_in(box) <= {"sandbox.json", "log", "disk", "disk-index"}
                smalldisks.clear(small)
                await box.resume()
            else:
                done += 1
                smalldisks.clear(small)
            assert box.folder.overlay(box.record.generation).read_bytes() == before
            await box.suspend()
            await check(node, box, before)
        shutil.rmtree(root)
        if done == AFTER:
            break
    assert done == AFTER and refused > 2


@full
def test_a_disk_index_is_whole_or_not_there(small: Path, full: str) -> None:
    """It only saves time: nobody is refused for it."""
    path = small / "disk-index"
    snapshots = ["sha256:" + digit * 64 for digit in "56"]
    old, new = (
        DiskIndex(snapshot, Stamp(bytes(16), 1 << 30, 1, 2), {number: bytes(HASH_BYTES) for number in range(count)})
        for snapshot, count in zip(snapshots, (100, 1000), strict=True)
    )
    outcomes = []
    for room in range(9):
        diskchanges.save(path, old)
        fill(small, full, room)
        diskchanges.save(path, new)
        smalldisks.clear(small)
        found = [diskchanges.load(path, snapshot) for snapshot in snapshots]
        assert found in ([None, None], [None, new])
        assert [one.name for one in small.iterdir()] == (["disk-index"] if found[1] else [])
        outcomes.append(found[1] is not None)
    lacking = -(-(88 + 1000 * 20) // 4096) if full == "pages" else 1
    assert outcomes == [False] * lacking + [True] * (9 - lacking)
