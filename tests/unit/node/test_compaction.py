"""Compaction in the background, on a real store and with real children; only the machines are missing."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import InvalidValue
from perdure.execution.sandboxes.record import Folder, KeptSnapshot, Record
from perdure.execution.sandboxes.sandbox import Sandbox
from perdure.execution.sandboxes.sandboxes import Sandboxes
from perdure.execution.snapshots import spaces, templates
from perdure.execution.snapshots.care import explain, garbage, verify
from perdure.execution.snapshots.store import Store
from perdure.formats.manifest import Snapshot
from perdure.host.paths import Home
from perdure.model import SandboxState
from perdure.node import compaction
from perdure.node.compaction import Compactor
from perdure.testing import processes
from perdure.testing.sandboxes import sleeping
from perdure.testing.snapshots import BLOCKS, Bench, block, blocks_of

BOX, FORK = "b0b0b0b0b0b0", "f0f0f0f0f0f0"
DISK = blocks_of(range(10))
LONG, SHORT = explain.LAYERS_MAX + 1, 3
DEADLINE_S = 60


class World:
    def __init__(self, root: Path) -> None:
        self.home = Home(root, root / "cache").make()
        self.bench = Bench(root)
        self.template = self.bench.template(blocks_of([1] * BLOCKS))
        nothing: Any = None
        self.every = Sandboxes(self.home, nothing, nothing, self.bench.store, nothing)
        self.compactor = Compactor(self.home, self.every, settle_s=0, again_s=0.05)

    def line(self, count: int) -> list[Snapshot]:
        """Each replaces a few blocks of the one before it: little is dead."""
        found: list[Snapshot] = []
        for number in range(count):
            changed = {place: block(100 * number + place) for place in range(10 * number, 10 * number + 12)}
            parent = found[-1] if found else self.template
            found.append(self.bench.capture(parent, changed, DISK, working_set=(20, 11), sandbox_id=BOX))
        return found

    def box(self, line: list[Snapshot], state: SandboxState = SandboxState.SUSPENDED, sandbox_id: str = BOX) -> Sandbox:
        record = sleeping(self.home.sandboxes, sandbox_id, "box", line, state=state)
        sandbox = Sandbox(self.every._rooms, Folder(self.home.sandboxes / sandbox_id), record)
        self.every._sandboxes[sandbox_id] = sandbox
        return sandbox

    def memory(self, digest: str) -> bytes:
        snapshot = self.bench.store.get(digest)
        with spaces.memory_of(self.bench.store, snapshot, templates.load(self.bench.templates, "warm")) as space:
            return space.read(0, BLOCKS)

    def suspended(self, sandbox: Sandbox) -> None:
        sandbox.emit("suspended")

    def kinds(self) -> list[str]:
        return [event.kind for event in self.every.events.kept]

    async def until(self, holds: Callable[[], object]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not holds():  # noqa: ASYNC110 - processes come and go unannounced
                await asyncio.sleep(0.005)

    async def compacted(self, times: int = 1) -> None:
        await self.until(lambda: self.kinds().count("sandbox.compacted") == times)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


_others: set[int] = set()  # children of this process that were there before the test, such as servers of other tests


@pytest.fixture(autouse=True)
def _count_from_here() -> None:
    _others.clear()
    _others.update(children())


@pytest.fixture
async def running(world: World) -> AsyncIterator[None]:
    task = asyncio.create_task(world.compactor.run())
    await asyncio.sleep(0)
    yield
    task.cancel()
    await asyncio.wait([task])
    assert children() == []


def children() -> list[int]:
    found = (int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())
    return [pid for pid in found if pid not in _others]


@pytest.mark.usefixtures("running")
async def test_after_a_suspend_a_long_chain_becomes_one_layer(world: World) -> None:
    line = world.line(LONG)
    box, memory = world.box(line), world.memory(line[-1].digest)
    world.suspended(box)
    await world.compacted()
    record = box.folder.load()
    assert record == box.record
    assert record.parent is not None
    made = world.bench.store.get(record.parent)
    assert (len(made.memory.layers), len(made.disk.layers)) == (1, 1)
    assert made.config.replaces == [line[-1].digest]
    assert world.memory(made.digest) == memory
    assert world.bench.store.working_set(made.digest) == [20, 11]
    assert line[-1].digest not in world.bench.store.digests()
    assert verify.whole(world.bench.store, templates=world.bench.templates).findings == []
    assert world.bench.left_over() == []


@pytest.mark.usefixtures("running")
async def test_what_is_not_due_is_left(world: World) -> None:
    line = world.line(SHORT)
    box = world.box(line)
    world.suspended(box)
    begun: list[int] = []
    await world.until(lambda: begun.extend(children()) or begun)  # whether its bytes are dead, a child looks
    await world.until(lambda: not children())
    assert box.record.parent == line[-1].digest
    assert world.kinds() == ["sandbox.suspended"]


@pytest.mark.usefixtures("running")
async def test_dead_bytes_make_it_due(world: World) -> None:
    line: list[Snapshot] = []
    for number in range(3):
        changed = {place: block(200 * number + place + 1) for place in range(100)}
        line.append(world.bench.capture(line[-1] if line else world.template, changed, DISK, sandbox_id=BOX))
    box = world.box(line)
    world.suspended(box)
    await world.compacted()


async def test_what_a_former_node_did_not_come_to(world: World) -> None:
    line = world.line(LONG)
    world.box(line)
    task = asyncio.create_task(world.compactor.run())
    await world.compacted()
    task.cancel()
    await asyncio.wait([task])


@pytest.mark.usefixtures("running")
async def test_while_it_runs_the_record_changes_below_it(world: World) -> None:
    """A long chain is not for ever because its sandbox never sleeps for long."""
    line = world.line(LONG)
    box = world.box(line, SandboxState.RUNNING)
    world.suspended(box)
    await world.compacted()
    assert box.state is SandboxState.RUNNING
    assert box.record.parent not in (None, line[-1].digest)
    assert box.record.snapshot(line[-1].digest) == box.record.snapshots[-1]


@pytest.mark.usefixtures("running")
async def test_no_collection_takes_what_is_about_to_be_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a fork: what is made of its origin's snapshot counts as the origin's, and that one is not busy."""
    line = world.line(LONG)
    fork = world.box(line, sandbox_id=FORK)
    save, leased = fork.folder.save, list[str]()

    def saved(record: Record) -> None:
        leased.extend(garbage.collect(world.bench.store, named=world.every.needs.names).leased)
        save(record)

    monkeypatch.setattr(fork.folder, "save", saved)
    world.suspended(fork)
    await world.compacted()
    assert leased == [fork.record.parent] != [line[-1].digest]
    assert fork.record.parent in world.bench.store.digests()
    assert verify.whole(world.bench.store, templates=world.bench.templates).findings == []


@pytest.mark.usefixtures("running")
async def test_who_moves_the_sandbox_goes_first(world: World) -> None:
    line = world.line(LONG)
    box = world.box(line)
    world.suspended(box)
    begun: list[int] = []
    await world.until(lambda: begun.extend(children()) or begun)
    async with box.moving:  # as a resume does
        box.rooms.before_moving(BOX)
        await world.until(lambda: begun[0] not in children() and world.compactor._gave_way[BOX])
        assert world.compactor._gave_way[BOX] == 1
        assert box.record.parent == line[-1].digest
    await world.compacted()  # later
    assert world.compactor._gave_way[BOX] == 0
    assert world.bench.left_over() == []


@pytest.mark.usefixtures("running")
async def test_who_deletes_goes_first_but_not_for_ever(world: World) -> None:
    line = world.line(LONG)
    box = world.box(line)
    world.suspended(box)
    gave_way = []
    async with asyncio.timeout(DEADLINE_S):
        while "sandbox.compacted" not in world.kinds():
            if children():
                await asyncio.to_thread(world.bench.store.sweep, lambda _: False)
            gave_way.append(world.compactor._gave_way[BOX])
            await asyncio.sleep(0.005)
    assert max(gave_way) == compaction.GIVES_WAY
    assert box.record.parent != line[-1].digest


def test_a_child_that_has_just_ended_is_not_stopped(world: World) -> None:
    """It was reaped, and its descriptor not yet closed."""
    with subprocess.Popen(["true"]) as child:
        pidfd = os.pidfd_open(child.pid)
        child.wait()
    try:
        world.compactor._pidfd, world.compactor._may_stop = pidfd, True
        world.compactor._stop()
        assert not world.compactor._stopped
    finally:
        os.close(pidfd)


@pytest.mark.usefixtures("running")
async def test_too_late_is_not_stored_twice(world: World) -> None:
    """It was suspended again meanwhile: what it goes on from lies over the old layers."""
    line = world.line(LONG + 1)
    box = world.box(line[:-1])
    world.suspended(box)
    await world.until(children)
    async with box.moving:  # a suspend, which nobody stops for
        await world.until(lambda: not children())
        box.save(snapshots=[*box.record.snapshots, KeptSnapshot(info=line[-1].info())], parent=line[-1].digest)
    await world.compacted()  # of the newest, then
    made = world.bench.store.get(box.record.parent or "")
    assert made.config.replaces == [line[-1].digest]
    assert [one.digest for one in line[:-1]] == world.bench.store.digests()[:-1]


@pytest.mark.usefixtures("running")
async def test_one_that_is_gone_meanwhile_changes_nothing(world: World) -> None:
    line = world.line(LONG)
    box = world.box(line)
    world.suspended(box)
    await world.until(children)
    await box.forget(line[-1].digest, force=True)
    await world.until(lambda: not children())
    assert box.record.parent is None
    await box.remove()
    assert world.bench.store.digests() == []


async def test_a_killed_node_leaves_a_snapshot_that_works(world: World) -> None:
    """At any moment: the record names the old one or the new one, and either is whole."""
    line = world.line(LONG)
    box, memory = world.box(line), world.memory(line[-1].digest)
    argv = [sys.executable, "-m", "perdure.node.compaction"]
    script = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([*sys.argv[2:5], str(os.getpid()), *sys.argv[5:]])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(float(sys.argv[1])) if sys.argv[1] != 'its end' else child.wait()\n"
        "os.kill(os.getpid(), 9)\n"
    )
    for moment in (0.05, 0.2, 0.3, 0.4, 0.6, "its end"):
        folders = [str(world.bench.store.folder), str(world.bench.templates), line[-1].digest]
        node = [sys.executable, "-c", script, str(moment), *argv, *folders]
        done = await asyncio.to_thread(subprocess.run, node, capture_output=True)
        assert done.returncode == -signal.SIGKILL
        worker = int(done.stdout.split()[0])  # it does not outlive the node
        assert await asyncio.to_thread(processes.ends, worker, DEADLINE_S)
        store = Store(world.bench.store.folder)
        assert verify.whole(store, templates=world.bench.templates).findings == []
        assert world.memory(line[-1].digest) == memory
        assert world.bench.left_over() == []
    made = [one for one in world.bench.store.digests() if one not in {snapshot.digest for snapshot in line}]
    assert len(made) == 1  # the last time it came to its end
    await asyncio.to_thread(world.every.needs.drop_unnamed)
    assert made[0] not in world.bench.store.digests()
    assert box.folder.load().parent == line[-1].digest


async def test_a_fork_finds_what_was_compacted_meanwhile(world: World) -> None:
    import contextlib

    line = world.line(LONG)
    box = world.box(line)
    done = await box.compact(line[-1].digest)
    with contextlib.ExitStack() as held:
        found = await world.every.needs.leased(line[-1].digest, held)
        assert found.digest == done.after.digest
        assert (await world.every._moment(line[-1].digest[7:20])).digest == done.after.digest


def test_the_setting() -> None:
    assert compaction.is_on({})
    assert compaction.is_on({compaction.SETTING: "on"})
    assert not compaction.is_on({compaction.SETTING: "off"})
    with pytest.raises(InvalidValue, match="PERDURE_COMPACTION is 'maybe'"):
        compaction.is_on({compaction.SETTING: "maybe"})


def test_the_child_is_idle(world: World) -> None:
    """It yields to everything else, and says what is wrong."""
    argv = [sys.executable, "-m", "perdure.node.compaction", str(os.getpid())]
    folders = [str(world.bench.store.folder), str(world.bench.templates)]
    with subprocess.Popen([*argv, *folders, "sha256:" + "0" * 64], stderr=subprocess.PIPE) as child:
        deadline = time.monotonic() + DEADLINE_S
        seen = set()
        while child.poll() is None and time.monotonic() < deadline:
            try:
                seen.add(os.sched_getscheduler(child.pid))
            except ProcessLookupError:
                break
        assert child.stderr is not None
        assert b"is not in the store" in child.stderr.read()
    assert child.returncode == 1
    assert os.SCHED_IDLE in seen
