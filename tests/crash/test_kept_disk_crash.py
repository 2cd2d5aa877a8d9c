"""A node dies at every durable step of whatever moves the disk that is kept of a suspended sandbox.

The next one finds a disk that holds what its snapshot holds, or none, and nothing else in the sandbox's folder; the
sandbox goes on with the right disk, and so does its next snapshot.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.execution.sandboxes.record import Folder
from perdure.execution.snapshots.care import verify
from perdure.model import SandboxState
from perdure.testing import dying, stillmachines
from perdure.testing.dying import BOX, BOX_WRITES
from perdure.testing.keptdisks import Lived, kept_in, restamp, stored, written
from perdure.testing.snapshots import block
from perdure.testing.stillmachines import StillSandbox
from perdure.testing.stores import Node

STEPS_MAX = 200
pytestmark = pytest.mark.timeout(300)


class World(Lived):
    def deaths(self, folder: Path, action: str, digest: str, done: bool, has_disk: bool) -> Iterator[Path]:
        for at in range(1, STEPS_MAX):
            root = folder / str(at)
            shutil.copytree(self.root, root)
            if has_disk:
                restamp(root)
            else:
                Folder(root / "sandboxes" / BOX).disk.unlink()
            status = dying.run(root, action, digest, at, done=done)
            if status == 0:
                assert at > 5
                return
            assert status == dying.KILLED
            yield root
            shutil.rmtree(root)
        raise AssertionError(f"{action} has more than {STEPS_MAX} steps")


def parent_of(box: StillSandbox) -> str:
    assert box.record.parent is not None
    return box.record.parent


async def goes_on(node: Node, box: StillSandbox, disk: bytes) -> None:
    """It has this disk, and what it does to that is in its next snapshots."""
    for number in (7, 40, 1):
        box.writes = {number: block(9000 + number)}
        await box.resume()
        disk = written(disk, box.writes)
        assert box.folder.overlay(box.record.generation).read_bytes() == disk
        info = await box.suspend()
        assert stored(node, info.digest) == disk
        assert kept_in(node.root) == disk
    assert names_in(box) == {"sandbox.json", "log", "disk", "disk-index"}
    assert verify.whole(node.store, templates=node.templates).findings == []


def names_in(box: StillSandbox) -> set[str]:
    return {path.name for path in box.folder.root.iterdir()}


async def found(world: World, node: Node, machine: bytes) -> tuple[StillSandbox, bytes]:
    """The sandbox as the next node finds it, and the disk that its snapshot has. ``machine``: what its machine had on
    its disk: a new snapshot has that, and so have the files that it left, where it was not suspended."""
    box = await stillmachines.started(node.root, node.store, BOX)
    allowed = {"sandbox.json", "log", "disk-index"}
    allowed |= {"disk"} if box.state is SandboxState.SUSPENDED else {f"machine-{box.record.generation}"}
    assert names_in(box) <= allowed
    assert box.state in (SandboxState.SUSPENDED, SandboxState.EXITED)
    assert [kept.info.digest for kept in box.record.snapshots] == node.store.digests()
    disk = stored(node, parent_of(box))
    assert disk == world.disks.get(parent_of(box), machine)
    if box.record.has_disk:
        assert box.folder.overlay(box.record.generation).read_bytes() == machine
    kept = kept_in(node.root)
    assert kept in (None, disk)
    return box, disk


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("action", ["suspend", "suspend without room"])
async def test_a_node_dies_at_every_durable_step_of_a_suspend(
    world: World, tmp_path: Path, action: str, done: bool
) -> None:
    machine = world.disks[world.line[-1]]  # it writes the same once more
    outcomes = set()
    for root in world.deaths(tmp_path, action, "", done, has_disk=True):
        with Node(root) as node:
            box, disk = await found(world, node, machine)
            outcomes.add((str(box.state), box.folder.disk.exists()))
            await goes_on(node, box, disk)
    assert ("exited", False) in outcomes
    assert ("suspended", False) in outcomes
    assert ("suspended", True) in outcomes


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("has_disk", [True, False], ids=["kept", "not-kept"])
@pytest.mark.parametrize("wanted", [2, 0], ids=["newest", "older"])
async def test_a_node_dies_at_every_durable_step_of_a_resume(
    world: World, tmp_path: Path, wanted: int, has_disk: bool, done: bool
) -> None:
    outcomes = set()
    for root in world.deaths(tmp_path, "resume", world.line[wanted], done, has_disk):
        with Node(root) as node:
            box, disk = await found(world, node, written(world.disks[world.line[wanted]], BOX_WRITES))
            outcomes.add((str(box.state), box.folder.disk.exists(), world.line.index(parent_of(box))))
            await goes_on(node, box, disk)
    assert ("suspended", has_disk, 2) in outcomes
    assert {one for one in outcomes if one[0] == "exited"} == {("exited", False, wanted)}


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
async def test_a_node_dies_at_every_durable_step_of_giving_its_snapshot_up(
    world: World, tmp_path: Path, done: bool
) -> None:
    outcomes = set()
    for root in world.deaths(tmp_path, "give up", world.line[-1], done, has_disk=True):
        with Node(root) as node:
            box = await stillmachines.started(root, node.store, BOX)
            parent = box.record.parent or box.record.snapshots[-1].info.digest
            outcomes.add(world.line.index(parent))
            assert kept_in(root) in (None, world.disks[parent])
            assert names_in(box) <= {"sandbox.json", "log", "disk", "disk-index"}
            await goes_on(node, box, world.disks[parent])
    assert outcomes == {1, 2}
