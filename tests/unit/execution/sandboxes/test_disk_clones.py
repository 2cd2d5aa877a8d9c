"""Disks where the file system shares blocks between files (btrfs, xfs), and where it does not (ext4): the same content,
and no copy where none is needed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.execution.sandboxes import disk
from perdure.execution.snapshots import diskchanges
from perdure.formats.blockmap import BLOCK
from perdure.formats.diskindex import CHUNK, DiskIndex
from perdure.testing import stillmachines, volumes
from perdure.testing.dying import BOX
from perdure.testing.keptdisks import stored, written
from perdure.testing.snapshots import BLOCKS, block, blocks_of
from perdure.testing.stillmachines import StillSandbox
from perdure.testing.stores import Node
from perdure.testing.volumes import CLONES, KINDS, shared_bytes, used_bytes

DATA = 256 * CHUNK  # 16 MiB of data
AT, HOLE = 8 * CHUNK, 320 * CHUNK  # where it is, and where there is none
SIZE = 400 * CHUNK
SNAPSHOT = "sha256:" + "5" * 64


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    if reason := volumes.lacking(request.param):
        pytest.skip(reason)
    return str(request.param)


@pytest.fixture
def volume(kind: str, tmp_path: Path) -> Iterator[Path]:
    with volumes.mounted(kind, tmp_path / "volume") as folder:
        yield folder


@pytest.fixture
def source(volume: Path) -> Path:
    path = volume / "source"
    path.touch()
    os.truncate(path, SIZE)
    write(path, AT, os.urandom(DATA))
    return path


def write(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b", buffering=0) as file:
        assert os.pwrite(file.fileno(), data, at) == len(data)


def test_a_clone_shares_its_blocks_or_is_a_copy(kind: str, volume: Path, source: Path) -> None:
    content, before = source.read_bytes(), used_bytes(volume)
    target = volume / "clone"
    disk.clone(source, target)
    grown = used_bytes(volume) - before
    assert target.read_bytes() == content
    if kind in CLONES:
        assert shared_bytes(target) == (DATA, DATA)
        assert grown < DATA // 8
    else:
        assert shared_bytes(target) == (0, DATA)
        assert grown >= DATA
    assert target.stat().st_blocks * 512 <= DATA + CHUNK  # holes stay holes
    write(source, AT, b"the machine goes on")
    write(target, AT + CHUNK, b"and so does its fork")
    assert target.read_bytes() == content[: AT + CHUNK] + b"and so does its fork" + content[AT + CHUNK + 20 :]
    assert source.read_bytes() == content[:AT] + b"the machine goes on" + content[AT + 19 :]


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("late", [True, False])
def test_the_disk_of_a_machine_at_one_moment(kind: str, volume: Path, source: Path, indexed: bool, late: bool) -> None:
    found = diskchanges.changes(source, None)
    write(source, AT + 2 * CHUNK + 5, b"early")
    before, target = used_bytes(volume), volume / "target"
    copy = disk.Copy(source, target, DiskIndex(SNAPSHOT, found.stamp, found.chunks) if indexed else None)
    copy.begin()
    if late:
        write(source, HOLE, b"late")
    copy.finish()
    now = source.read_bytes()
    grown, shared = used_bytes(volume) - before, shared_bytes(target)
    write(source, AT + 9 * CHUNK, b"after")
    changes = copy.changes()
    each, first = CHUNK // BLOCK, AT // BLOCK
    wanted = [(first + 2 * each, first + 3 * each), *([(HOLE // BLOCK, HOLE // BLOCK + each)] if late else [])]
    assert changes.ranges == (wanted if indexed else None)
    held = target.read_bytes()
    for begin, end in changes.ranges or [(0, SIZE // BLOCK)]:
        assert held[begin * BLOCK : end * BLOCK] == now[begin * BLOCK : end * BLOCK]
    if kind in CLONES:
        assert held == now  # all of it, at no cost
        assert shared[0] == shared[1] >= DATA
        assert grown < DATA // 8
    else:
        assert shared[0] == 0
        assert shared[1] <= 2 * CHUNK if indexed else shared[1] >= DATA
    again = diskchanges.changes(source, DiskIndex(SNAPSHOT, changes.stamp, changes.chunks))
    assert again.ranges == [(first + 9 * each, first + 10 * each)]


def test_empty_disks_share_what_mke2fs_wrote(kind: str, volume: Path) -> None:
    for name in "ab":
        disk.make(volume / "disks", 64, volume / name)
    assert (volume / "a").read_bytes() == (volume / "b").read_bytes()
    assert disk.problem_of(volume / "a") == ""
    shared, total = shared_bytes(volume / "b")
    assert shared == (total if kind in CLONES else 0)
    assert 0 < total < 16 << 20  # of 64 MiB: mostly its journal


class Watched(StillSandbox):
    """Its machine writes on as soon as it was captured. ``seen``: of the copy of its disk, what is shared."""

    seen: tuple[int, int] = (0, 0)

    async def wake(self, *values: object) -> None:  # the copy is made, and not yet packed
        (copy,) = self.folder.root.glob("capture-*/overlay")
        self.seen = shared_bytes(copy)
        stillmachines.write(self.folder.overlay(self.record.generation), {3: block(31), 15: block(32)})


async def test_a_checkpoint_has_the_disk_of_its_moment(kind: str, volume: Path) -> None:
    disk_of_first = blocks_of([*range(1, 20), *[0] * 60])
    with Node(volume / "node") as node:
        image = node.image()
        first = node.capture(node.template(blocks_of([1] * BLOCKS)), {}, disk_of_first, sandbox_id=BOX, image=image)
        stillmachines.suspended(node.root, BOX, [first], image)
        held = await stillmachines.started(node.root, node.store, BOX)
        held.writes = {3: block(30)}
        await held.resume()
        box = Watched(held.rooms, held.folder, held.record)
        box.machine, box.session = held.machine, held.session
        info = await box.checkpoint()
        assert stored(node, info.digest) == written(disk_of_first, {3: block(30)})
        shared, total = box.seen
        assert total > 0
        assert shared == (total if kind in CLONES else 0)
        info = await box.suspend()
        assert stored(node, info.digest) == written(disk_of_first, {3: block(31), 15: block(32)})
