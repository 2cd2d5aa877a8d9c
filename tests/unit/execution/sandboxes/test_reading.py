"""The machines that read the files of a sandbox which has none: how many of them there are, and who makes room."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from perdure.errors import NoRoom
from perdure.execution.sandboxes import reading
from perdure.execution.sandboxes.admission import Admission, Limits
from perdure.execution.sandboxes.sandbox import QUIET_AT_ONCE
from perdure.testing import stillmachines
from perdure.testing.snapshots import BLOCKS, blocks_of
from perdure.testing.stillmachines import StillSandbox
from perdure.testing.stores import Node

BOX = "b0b0b0b0b0b0"
WITHIN_S = 20.0


class Machines:
    """Instead of those of ``reading``. ``come_up``: they are there once this is set."""

    def __init__(self) -> None:
        self.begun = self.there = self.most = 0
        self.come_up = asyncio.Event()
        self.changed = asyncio.Event()

    @contextlib.asynccontextmanager
    async def __call__(self, *values: Any) -> AsyncIterator[Any]:
        self.begun += 1
        self.changed.set()
        await self.come_up.wait()
        self.there += 1
        self.most = max(self.most, self.there)
        try:
            yield SimpleNamespace(tree=None, files=None)
        finally:
            self.there -= 1


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> Machines:
    found = Machines()
    monkeypatch.setattr(reading, "_machine", found)
    return found


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[StillSandbox]:
    """Suspended, of 512 MiB, on a node that has room for three of these."""
    with Node(tmp_path) as node:
        image = node.image()
        first = node.capture(
            node.template(blocks_of([1] * BLOCKS)), {}, blocks_of(range(1, 9)), sandbox_id=BOX, image=image
        )
        stillmachines.suspended(tmp_path, BOX, [first], image)
        found = await stillmachines.started(tmp_path, node.store, BOX)
        limits = Limits(memory_mib=3 * 512, machines_max=100)
        yield StillSandbox(
            dataclasses.replace(found.rooms, admission=Admission(dict, limits)), found.folder, found.record
        )


async def test_a_sandbox_is_read_by_few_machines_at_once(box: StillSandbox, machines: Machines) -> None:
    async def look() -> None:
        async with reading.tree_of(box):
            assert machines.there <= QUIET_AT_ONCE
            await asyncio.sleep(0)

    looks = asyncio.gather(*(look() for _ in range(20)))
    async with asyncio.timeout(WITHIN_S):
        while machines.begun < QUIET_AT_ONCE:
            machines.changed.clear()
            await machines.changed.wait()
        machines.come_up.set()
        await looks
    assert (machines.begun, machines.there, machines.most) == (20, 0, QUIET_AT_ONCE)
    assert not list(box.rooms.home.run.glob("reading-*"))


async def test_a_machine_that_reads_takes_room_until_it_ends(box: StillSandbox, machines: Machines) -> None:
    machines.come_up.set()
    room = box.rooms.admission.room
    with room("a0a0a0a0a0a0", 512, 0), room("c0c0c0c0c0c0", 512, 0):
        async with reading.tree_of(box):
            with pytest.raises(NoRoom):
                async with box.admitted():
                    pass
            with pytest.raises(NoRoom):
                async with reading.tree_of(box):
                    pass
        async with box.admitted():
            with pytest.raises(NoRoom):
                async with reading.tree_of(box):
                    pass
    assert machines.begun == 1


async def test_it_waits_its_turn_to_come_up(box: StillSandbox, machines: Machines) -> None:
    async def look() -> None:
        async with reading.tree_of(box):
            pass

    turns = box.rooms.ground.turns
    async with contextlib.AsyncExitStack() as all_of_them:
        while not turns.locked():
            await all_of_them.enter_async_context(turns)
        looking = asyncio.create_task(look())
        while not turns._waiters:  # it is prepared, and wants one
            assert not machines.begun and not looking.done()
            await asyncio.sleep(0.01)
    machines.come_up.set()
    async with asyncio.timeout(WITHIN_S):
        await looking
