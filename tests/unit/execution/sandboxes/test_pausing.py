"""A sandbox that is paused: what it may do from there, and where it is after what failed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import Conflict, GuestFailed, IllegalTransition, MachineFailed
from perdure.execution.sandboxes import forking, moving
from perdure.execution.sandboxes.sandbox import Sandbox
from perdure.model import SandboxState as S
from perdure.testing import stillmachines
from perdure.testing.dying import BOX
from perdure.testing.snapshots import BLOCKS, blocks_of
from perdure.testing.stillmachines import StillSandbox
from perdure.testing.stores import Node


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[StillSandbox]:
    with Node(tmp_path) as node:
        image = node.image()
        template = node.template(blocks_of([1] * BLOCKS))
        first = node.capture(template, {}, blocks_of(range(1, 9)), sandbox_id=BOX, image=image)
        stillmachines.suspended(tmp_path, BOX, [first], image)
        sandbox = await stillmachines.started(tmp_path, node.store, BOX)
        await sandbox.resume()
        sandbox.main = _Main()  # type: ignore[assignment]  # it stands for a MainProcess
        yield sandbox


class _Main:
    over = False
    process = None

    def cancel(self) -> None:
        pass


async def stands_still(sandbox: Sandbox) -> bool:
    return bool((await sandbox.need_machine().request("stat"))["state"] == "paused")


async def test_there_and_back(running: StillSandbox) -> None:
    assert (await running.pause()).state is S.PAUSED and await stands_still(running)
    assert running.folder.load().state is S.PAUSED
    with pytest.raises(IllegalTransition, match="paused already") as caught:
        await running.pause()
    with pytest.raises(Conflict, match="paused, not running") as caught:
        running.need_running()
    assert "fcrun unpause" in caught.value.hint
    for refused in (running.checkpoint(), forking.moment_of(running), running.resume(), running.start()):
        with pytest.raises(IllegalTransition, match="is paused"):
            await refused
    with pytest.raises(IllegalTransition, match="cannot remove"):
        await running.remove()
    assert await stands_still(running)
    assert (await running.unpause()).state is S.RUNNING and not await stands_still(running)
    with pytest.raises(IllegalTransition, match="runs already"):
        await running.unpause()


async def test_it_is_looked_at_and_stands_still_again(running: StillSandbox) -> None:
    await running.pause()
    async with running.looked_at():
        assert not await stands_still(running) and running.state is S.PAUSED
    assert await stands_still(running)


async def test_who_looks_gives_way_to_who_moves_it(running: StillSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who looks may be a client that reads no more, for ever."""
    monkeypatch.setattr(moving, "LOOK_S", 0.05)
    await running.pause()

    async def look(over: asyncio.Event | None = None) -> None:
        async with running.looked_at():
            looks.set()
            await (over or asyncio.Event()).wait()

    async with asyncio.timeout(10):
        looks, over = asyncio.Event(), asyncio.Event()
        first, second = asyncio.create_task(look(over)), asyncio.create_task(look())
        await looks.wait()
        looks.clear()
        over.set()
        await first  # others who look wait, and hurry nobody
        await looks.wait()
        third = asyncio.create_task(look())  # before who moves it, but it gives way as well
        await asyncio.sleep(0)
        assert (await running.unpause()).state is S.RUNNING
        for slow in (second, third):
            with pytest.raises(Conflict, match="wanted to move it"):
                await slow
    assert not await stands_still(running)


async def test_a_look_is_not_hurried_for_nobody(running: StillSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving, "LOOK_S", 0.0)
    await running.pause()
    async with running.looked_at():
        for _ in range(10):
            await asyncio.sleep(0.001)
    with pytest.raises(TimeoutError, match="its own"):
        async with running.looked_at():
            raise TimeoutError("its own")
    assert await stands_still(running)


async def test_it_is_suspended_as_it_is(running: StillSandbox) -> None:
    await running.pause()
    snapshot = await running.suspend()
    assert (running.state, running.record.parent) == (S.SUSPENDED, snapshot.digest)
    await running.resume()
    assert running.state is S.RUNNING


async def test_one_that_cannot_be_suspended_is_paused_as_before(
    running: StillSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    await running.pause()

    async def refuse(*values: Any) -> None:
        raise MachineFailed("no capture today")

    monkeypatch.setattr("perdure.execution.sandboxes.capturing.store", refuse)
    with pytest.raises(MachineFailed, match="no capture today"):
        await running.suspend()
    assert running.state is S.PAUSED and await stands_still(running)


async def test_one_whose_guest_does_not_answer_stands_still_again(
    running: StillSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever wanted something of it: it is not left running while it says that it is paused."""
    await running.pause()

    async def silent(timeout_s: float) -> None:
        assert not await stands_still(running)
        raise TimeoutError

    monkeypatch.setattr(running.session, "ready", silent)
    with pytest.raises(GuestFailed, match="does not answer"):
        await running.suspend()
    assert running.state is S.PAUSED and await stands_still(running)
    with pytest.raises(GuestFailed, match="does not answer"):
        async with running.looked_at():
            pass
    assert running.state is S.PAUSED and await stands_still(running)
    with pytest.raises(GuestFailed, match="does not answer"):
        await running.unpause()
    assert running.state is S.PAUSED and await stands_still(running)
    assert (await running.kill("KILL")).state is S.EXITED  # its machine is there to be ended
    assert running.record.cause == "killed"


async def test_one_that_cannot_be_woken_stays_paused(running: StillSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    await running.pause()

    async def refuse(*values: Any) -> None:
        raise MachineFailed("it does not wake")

    monkeypatch.setattr(running, "wake", refuse)
    with pytest.raises(MachineFailed, match="does not wake"):
        await running.unpause()
    assert running.state is S.PAUSED and await stands_still(running)


async def test_one_that_dies_has_exited(running: StillSandbox) -> None:
    await running.pause()
    machine: Any = running.machine
    await running._bury(machine, "machine-died", "killed")
    assert (running.state, running.record.cause) == (S.EXITED, "machine-died")


async def test_it_is_removed_by_force(running: StillSandbox) -> None:
    await running.pause()
    await running.remove(force=True)
    assert not running.folder.root.exists()
