"""A sandbox around the real guestd: what its ends leave, when they meet other use cases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from perdure.execution.sandboxes.record import Folder, KeptSnapshot, Record
from perdure.execution.sandboxes.sandbox import Sandbox
from perdure.execution.sandboxes.sandboxes import Sandboxes
from perdure.formats.blockmap import BLOCK
from perdure.host.paths import Home
from perdure.model import ExecSpec, SandboxSpec, SandboxState
from perdure.testing.snapshots import BLOCKS, block
from perdure.testing.stores import Node

from .conftest import DEADLINE_S, Guest

BOX = "b0b0b0b0b0b0"
DEAF = "trap 'echo heard' TERM; echo up; while :; do read line; done"


class World:
    """A node with a sandbox that runs in the guest, was suspended once before, and is removed when it ends."""

    def __init__(self, root: Path, guest: Guest) -> None:
        self.node = Node(root)
        home = Home(root, root / "cache").make()
        snapshot = self.node.capture(
            self.node.template(bytes(BLOCKS * BLOCK)), {1: block(1)}, bytes(BLOCK), sandbox_id=BOX
        )
        self.digest = snapshot.digest
        nothing: Any = None
        self.every = Sandboxes(home, nothing, self.node.images, self.node.store, nothing)
        folder = Folder(home.sandboxes / BOX)
        folder.root.mkdir()
        record = Record(
            id=BOX,
            name="box",
            spec=SandboxSpec(image="tiny", auto_remove=True),
            image_digest=self.node.image(),
            created=1.0,
            state=SandboxState.RUNNING,
            parent=self.digest,
            snapshots=[KeptSnapshot(info=snapshot.info())],
        )
        folder.save(record)
        self.box = Sandbox(self.every._rooms, folder, record)
        self.box.session = guest.session
        self.every._sandboxes[BOX] = self.box

    async def main(self, script: str) -> None:
        """Its main process has said that it is up."""
        assert self.box.session is not None
        self.box.follow(await self.box.session.exec(ExecSpec(command=["sh", "-c", script], stdin=True), process_id=BOX))
        await self.logged(b"up\n")

    async def logged(self, text: bytes) -> None:
        async with asyncio.timeout(DEADLINE_S):
            async for record in self.box.log.read(0, lambda: True):
                if text in record.data:
                    return

    async def settled(self) -> None:
        """What the sandbox does in the background is done."""
        async with asyncio.timeout(DEADLINE_S):
            while self.box._tasks:
                await asyncio.gather(*self.box._tasks)


@pytest.fixture
async def world(tmp_path: Path, guest: Guest) -> AsyncIterator[World]:
    world = World(tmp_path / "home", guest)
    yield world
    if world.box.main is not None:
        world.box.main.cancel()
    world.node.cache.close()


async def test_a_stop_that_a_suspend_overtook_is_over(world: World) -> None:
    """With --rm a stop removes the sandbox and its snapshots. One that came to nothing, as the sandbox was suspended
    while it waited, has no part in what ends the sandbox one day: what died can go on from its snapshot."""
    box, store = world.box, world.node.store
    await world.main(DEAF)

    async def suspended() -> None:
        async with box.moving:
            await world.logged(b"heard\n")
            box.move("suspend")
            box.move("suspended")

    async with box.moving:  # the stop takes its turn, then the suspend, then the stop's end
        stopping = asyncio.create_task(box.stop(0))
        await asyncio.sleep(0)
        suspending = asyncio.create_task(suspended())
        await asyncio.sleep(0)
    async with asyncio.timeout(DEADLINE_S):
        await suspending
        assert (await stopping).state is SandboxState.SUSPENDED

    async with box.moving:
        box.move("resume")
        box.move("resumed")
        await box.lost("firecracker-died", "")
    await world.settled()
    assert (box.state, box.record.cause, box.record.exit_status) == (SandboxState.EXITED, "firecracker-died", None)
    assert box.folder.load().names(world.digest)
    assert store.digests() == [world.digest]
    assert world.every.find("box") is box


async def test_a_stop_that_nothing_overtakes_removes_it(world: World) -> None:
    await world.main(DEAF)
    info = await world.box.stop(0)
    assert (info.cause, info.exit_status) == ("stopped", 137)
    await world.settled()
    assert world.node.store.digests() == []
    assert not world.box.folder.root.exists()
