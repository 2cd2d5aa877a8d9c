"""Sandboxes that are started again by their policy: how long is waited before each try, and when it is over."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import MachineFailed
from perdure.execution.sandboxes.admission import Limits
from perdure.execution.sandboxes.life import Life
from perdure.execution.sandboxes.record import Folder
from perdure.execution.sandboxes.restarting import delay_s
from perdure.execution.sandboxes.sandbox import Sandbox
from perdure.execution.sandboxes.sandboxes import Sandboxes
from perdure.execution.snapshots.store import Store
from perdure.host.paths import Home
from perdure.model import SandboxSpec, SandboxState
from perdure.node import restarts as module
from perdure.node.restarts import Restarts
from perdure.testing.sandboxes import exited
from perdure.testing.stillmachines import StillGround

BOX = "b0b0b0b0b0b0"
WITHIN_S = 20.0


class Waits:
    """What is waited before each try, in numbers of tries before it; ``enough`` of them end the wait of a test."""

    def __init__(self, enough: int) -> None:
        self.seen: list[int] = []
        self.there = asyncio.Event()
        self._enough = enough

    def __call__(self, number: int) -> float:
        self.seen.append(number)
        if len(self.seen) < self._enough:
            return 0.0
        self.there.set()
        return delay_s(1000)


@pytest.fixture
def make(tmp_path: Path) -> Any:
    """A node that has no room for any machine, with a sandbox that has exited."""

    def made(policy: str, **record: Any) -> tuple[Sandboxes, Sandbox]:
        home = Home(tmp_path, tmp_path / "cache").make()
        nothing: Any = None
        ground = StillGround(home, "warm")
        every = Sandboxes(home, ground, nothing, Store(home.store), nothing, limits=Limits(memory_mib=1))
        found = exited(home.sandboxes, BOX, SandboxSpec(image="i", restart=policy), **record)
        every._sandboxes[BOX] = Sandbox(every._rooms, Folder(home.sandboxes / BOX), found)
        return every, every._sandboxes[BOX]

    return made


@pytest.mark.parametrize("policy", ["always", "on-failure:1"])
async def test_a_start_that_is_refused_is_tried_later_and_later(
    make: Any, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts for no start: its policy has as many as before, once there is room."""
    now = time.time()
    every, box = make(policy, exit_status=3, started=now - 100, finished=now)
    saved: list[object] = []
    monkeypatch.setattr(box.folder, "save", saved.append)
    waits = Waits(6)
    monkeypatch.setattr(module, "delay_s", waits)
    running = asyncio.create_task(Restarts(every).run())
    async with asyncio.timeout(WITHIN_S):
        await waits.there.wait()
    assert waits.seen == [0, 1, 2, 3, 4, 5]
    assert (box.state, box.record.restarts, saved) == (SandboxState.EXITED, 0, [])
    running.cancel()
    await asyncio.wait({running})


async def test_starts_that_fail_come_later_and_later_and_are_counted(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    every, box = make("on-failure:4", exit_status=3, started=now - 100, finished=now)

    async def start(life: Life, progress: Any) -> None:
        life.move("start", finished=None)
        life.exited("died", "start-failed", "no such command", 127)
        raise MachineFailed("no such command")

    monkeypatch.setattr("perdure.execution.sandboxes.starting.start", start)
    waits = Waits(1000)
    monkeypatch.setattr(module, "delay_s", waits)
    running = asyncio.create_task(Restarts(every).run())
    async with asyncio.timeout(WITHIN_S):
        while box.record.restarts < 4 or box.moving.locked():
            await box.changed.next.wait()
    for _ in range(100):  # nothing comes after these
        await asyncio.sleep(0)
    assert waits.seen == [0, 1, 2, 3]
    assert box.folder.load().restarts == 4
    running.cancel()
    await asyncio.wait({running})
