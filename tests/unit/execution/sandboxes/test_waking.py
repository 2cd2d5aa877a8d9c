"""An idle sandbox goes to sleep by itself and is woken by whoever uses it; nobody is lost between the two."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from perdure.errors import Conflict, MachineFailed
from perdure.execution.sandboxes import reading
from perdure.execution.sandboxes.activity import Activity
from perdure.model import CallsEndpoint, SandboxState, WakeReason
from perdure.node import idleness
from perdure.testing import stillmachines
from perdure.testing.snapshots import BLOCKS, blocks_of
from perdure.testing.stillmachines import StillMachine, StillSandbox
from perdure.testing.stores import Node

BOX = "b0b0b0b0b0b0"
WITHIN_S = 20.0


class Sleeper(StillSandbox):
    """``told``: its events, with their reasons. ``fails``: what its next resume raises."""

    told: list[tuple[str, str]]
    fails: Exception | None = None
    spawned = 0

    async def spawn(self, launcher: Any, session: Any) -> Any:
        self.spawned += 1
        if self.fails is not None:
            raise self.fails
        return await super().spawn(launcher, session)


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Sleeper]:
    """Suspended."""
    with Node(tmp_path / "home") as node:
        image = node.image()
        template = node.template(blocks_of([1] * BLOCKS))
        first = node.capture(template, {}, blocks_of(range(9)), sandbox_id=BOX, image=image)
        stillmachines.suspended(node.root, BOX, [first], image)
        found = await stillmachines.started(node.root, node.store, BOX)
        told: list[tuple[str, str]] = []

        def emit(kind: str, record: object, details: dict[str, Any]) -> None:
            told.append((kind.removeprefix("sandbox."), details.get("reason", "")))

        box = Sleeper(dataclasses.replace(found.rooms, emit=emit), found.folder, found.record)
        box.told = told
        yield box
        box.log.close()


def wish(box: Sleeper, **changes: Any) -> None:
    box.save(spec=msgspec.structs.replace(box.record.spec, **changes))


async def is_over(task: asyncio.Task[Any]) -> None:
    async with asyncio.timeout(WITHIN_S):
        await task


async def test_all_who_come_at_once_wake_it_once(box: Sleeper) -> None:
    await asyncio.gather(*(box.awake(reason) for reason in WakeReason for _ in range(20)))
    assert (box.state, box.spawned) == (SandboxState.RUNNING, 1)
    assert box.told == [("resumed", "exec")]
    await box.awake(WakeReason.CONNECT)
    assert box.spawned == 1


async def test_who_leaves_ends_it_for_nobody(box: Sleeper) -> None:
    first = asyncio.create_task(box.awake(WakeReason.EXEC))
    second = asyncio.create_task(box.awake(WakeReason.EXEC))
    await asyncio.sleep(0)
    assert box.waking is not None
    first.cancel()
    await is_over(second)
    assert (box.state, box.spawned) == (SandboxState.RUNNING, 1)


async def test_all_get_the_error_of_one_resume(box: Sleeper) -> None:
    box.fails = MachineFailed("no machine today")
    results = await asyncio.gather(*(box.awake(WakeReason.EXEC) for _ in range(5)), return_exceptions=True)
    assert [str(result) for result in results] == ["no machine today"] * 5
    assert (box.state, box.spawned) == (SandboxState.SUSPENDED, 1)
    box.fails = None
    await box.awake(WakeReason.EXEC)
    assert box.state is SandboxState.RUNNING


async def test_what_its_wake_on_lacks_does_not_wake_it(box: Sleeper) -> None:
    wish(box, wake_on=(WakeReason.CONNECT,))
    with pytest.raises(Conflict, match="suspended, not running") as caught:
        await box.awake(WakeReason.EXEC)
    assert "--wake-on has no exec" in caught.value.hint and "fcrun resume" in caught.value.hint
    await box.awake(WakeReason.CONNECT)
    assert box.state is SandboxState.RUNNING


async def test_the_sandbox_of_a_run_is_woken_by_its_server_alone(box: Sleeper) -> None:
    box.save(calls=CallsEndpoint(url="unix:/x", run_id="0123456789ab", epoch=1, token="t"))
    with pytest.raises(Conflict) as caught:
        await box.awake(WakeReason.EXEC)
    assert "perdure status 0123456789ab" in caught.value.hint


async def test_what_is_over_or_never_ran_is_not_woken(box: Sleeper) -> None:
    for state, hint in ((SandboxState.EXITED, ""), (SandboxState.CREATED, "fcrun start")):
        box.save(state=state)
        with pytest.raises(Conflict, match=f"is {state}, not running") as caught:
            await box.awake(WakeReason.EXEC)
        assert hint in caught.value.hint


async def test_who_comes_as_it_goes_to_sleep_has_it_back(box: Sleeper) -> None:
    await box.awake(WakeReason.EXEC)
    sleeping = asyncio.create_task(box.suspend_idle(0.0))
    await asyncio.sleep(0)
    assert box.dozing and box.state is SandboxState.RUNNING  # it is decided, and its state says nothing of it yet
    with box.activity.busy():
        await box.awake(WakeReason.EXEC)
        assert box.state is SandboxState.RUNNING and not box.dozing
    assert await sleeping is not None
    assert box.told == [("resumed", "exec"), ("suspended", "idle"), ("resumed", "exec")]


async def test_one_that_is_used_is_not_put_to_sleep(box: Sleeper) -> None:
    await box.awake(WakeReason.EXEC)
    with box.activity.busy():
        assert await box.suspend_idle(0.0) is None
    assert await box.suspend_idle(3600.0) is None  # it was, just now
    assert box.state is SandboxState.RUNNING


class Deaf:
    """A main process that obeys no signal. ``told``: it got one."""

    over = False

    def __init__(self) -> None:
        self.process = self
        self.told = asyncio.Event()

    async def signal(self, number: int) -> None:
        self.told.set()

    def cancel(self) -> None:
        pass


async def test_one_that_is_being_stopped_is_not_put_to_sleep(box: Sleeper) -> None:
    """It would be suspended, and the stop would say that it is done."""
    await box.awake(WakeReason.EXEC)
    main = Deaf()
    box.main = main  # type: ignore[assignment]  # it stands for a MainProcess
    stopping = asyncio.create_task(box.stop(-1, "TERM"))
    async with asyncio.timeout(WITHIN_S):
        await main.told.wait()
        assert await box.suspend_idle(0.0) is None
    box.exited("exited", "stopped", "", 143)
    await is_over(stopping)
    assert stopping.result().state is SandboxState.EXITED


async def test_one_whose_files_are_read_is_not_put_to_sleep(box: Sleeper) -> None:
    await box.awake(WakeReason.EXEC)
    box.session.tree = box.session.files = None  # type: ignore[union-attr]
    for look in (reading.tree_of, reading.files_of):
        async with look(box):
            assert await box.suspend_idle(0.0) is None
    assert await box.suspend_idle(0.0) is not None


async def test_what_goes_to_sleep_is_read_once_it_sleeps(box: Sleeper, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a machine of its own, which does not stop in the middle."""
    states: list[SandboxState] = []

    @contextlib.asynccontextmanager
    async def quiet(sandbox: Sleeper) -> AsyncIterator[Any]:
        states.append(sandbox.state)
        yield SimpleNamespace(tree=None)

    monkeypatch.setattr(reading, "_quiet", quiet)
    await box.awake(WakeReason.EXEC)
    box.session.tree = None  # type: ignore[union-attr]
    sleeping = asyncio.create_task(box.suspend_idle(0.0))
    await asyncio.sleep(0)
    async with reading.tree_of(box):
        assert states == [SandboxState.SUSPENDED]
    await is_over(sleeping)


async def test_only_so_many_are_captured_at_a_time(box: Sleeper) -> None:
    """What a capture takes of the host's memory until it is collected is not admitted."""
    await box.awake(WakeReason.EXEC)
    captures = box.rooms.ground.captures
    for capture in (box.checkpoint, box.suspend):
        async with contextlib.AsyncExitStack() as others:
            while not captures.locked():
                await others.enter_async_context(captures)
            waiting = asyncio.create_task(capture())
            assert not (await asyncio.wait({waiting}, timeout=0.2))[0]
            assert box.state is SandboxState.RUNNING
        await is_over(waiting)
    assert box.state is SandboxState.SUSPENDED


class Busy(StillMachine):
    """With a guest that computes all the time, until it is ``done``."""

    cpu_s = 0.0
    done = False
    asked = 0

    def __init__(self) -> None:
        super().__init__({})
        self.asked_often = asyncio.Event()

    async def request(self, op: str, **params: Any) -> dict[str, Any]:
        if op == "stat":
            self.asked += 1
            if self.asked == 8:
                self.asked_often.set()
            self.cpu_s += 0.0 if self.done else 1.0
            return {"state": "running", "usage": {"cpu_s": self.cpu_s}}
        return await super().request(op, **params)


async def test_an_idle_one_goes_to_sleep(box: Sleeper) -> None:
    await box.awake(WakeReason.EXEC)
    wish(box, suspend_after_s=0.3)
    await is_over(asyncio.create_task(idleness.watch(box)))
    assert box.told[-1] == ("suspended", "idle")


async def test_one_whose_guest_computes_stays_awake_until_it_is_done(box: Sleeper) -> None:
    await box.awake(WakeReason.EXEC)
    machine = Busy()
    box.machine = machine  # type: ignore[assignment]  # it stands for a Machine
    wish(box, suspend_after_s=0.2)
    watching = asyncio.create_task(idleness.watch(box))
    await machine.asked_often.wait()  # each look within the time finds it at work
    assert box.state is SandboxState.RUNNING
    machine.done = True
    await is_over(watching)
    assert box.told[-1] == ("suspended", "idle")


async def test_one_that_writes_stays_awake(box: Sleeper) -> None:
    await box.awake(WakeReason.EXEC)
    wish(box, suspend_after_s=0.4)
    watching = asyncio.create_task(idleness.watch(box))
    for _ in range(12):
        box.log.append(1, b"tick\n")
        await asyncio.wait({watching}, timeout=0.1)
        assert box.state is SandboxState.RUNNING
    await is_over(watching)


async def test_a_suspend_that_fails_is_tried_again(box: Sleeper, monkeypatch: pytest.MonkeyPatch) -> None:
    await box.awake(WakeReason.EXEC)
    wish(box, suspend_after_s=0.2)
    failures = [MachineFailed("not now"), OSError("nor now")]
    really = box.suspend_idle

    async def suspend_idle(after_s: float) -> Any:
        if failures:
            raise failures.pop()
        return await really(after_s)

    monkeypatch.setattr(box, "suspend_idle", suspend_idle)
    await is_over(asyncio.create_task(idleness.watch(box)))
    assert box.state is SandboxState.SUSPENDED and not failures


def test_activity() -> None:
    now = 10.0
    activity = Activity(lambda: now)
    now = 15.0
    assert (activity.is_busy, activity.idle_s) == (False, 5.0)
    with activity.busy():
        with contextlib.suppress(KeyError), activity.busy():
            raise KeyError
        now = 20.0
        assert (activity.is_busy, activity.idle_s) == (True, 0.0)
    now = 22.0
    assert (activity.is_busy, activity.idle_s) == (False, 2.0)
    activity.touched()
    assert activity.idle_s == 0.0
