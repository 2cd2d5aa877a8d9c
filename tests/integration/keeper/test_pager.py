"""What a pager wants goes through its keeper to the node, and comes back; a machine outlives a pager that is done."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from perdure.errors import InvalidValue
from perdure.execution.machine.remote import Keeper, Launcher
from perdure.execution.snapshots import restore
from perdure.formats import memorymap
from perdure.formats.blockmap import BLOCK
from perdure.keeper.jail import FIRST_UID
from perdure.linux import userfaultfd
from perdure.testing.faulting import Machine
from perdure.testing.remotelayers import RemoteLayers
from perdure.testing.snapshots import BLOCKS, Bench, facts

from .conftest import DEADLINE_S, Host, connected, ended, gone, jails_under
from .test_jail import status_of

try:
    os.close(userfaultfd.open_descriptor())
except OSError as reason:
    pytest.skip(f"userfaultfd is not permitted here: {reason}", allow_module_level=True)

SANDBOX = "0123456789ab"
MEMORY = random.Random(1).randbytes(BLOCKS * BLOCK)


class Node:
    """A connection to a keeper, and what it said by itself."""

    def __init__(self, keeper: Keeper) -> None:
        self.keeper = keeper
        self._events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        keeper.listen(self._events.put_nowait)

    async def event(self) -> dict[str, Any]:
        return await asyncio.wait_for(self._events.get(), DEADLINE_S)

    async def wanted(self) -> list[tuple[int, int]]:
        event = await self.event()
        assert event["event"] == "pager-want", event
        return [(layer, number) for layer, number in event["frames"]]


class Restored:
    """A machine whose layers are all remote: a stand-in for Firecracker, and a process for its memory."""

    def __init__(self, host: Host, launcher: Launcher) -> None:
        bench = Bench(host.folder / "bench")
        snapshot = bench.capture(
            bench.template(bytes(len(MEMORY))),
            {number: MEMORY[number * BLOCK : (number + 1) * BLOCK] for number in range(BLOCKS)},
            bytes(BLOCK),
        )
        files = restore.prepare(bench.store, snapshot, folder=bench.root, templates=bench.templates, facts=facts())
        self.host, self.launcher = host, launcher
        self.remote = RemoteLayers(bench.root)
        emptied = self.remote.empty(memorymap.decode(files.memory_map.read_bytes()))
        files.memory_map.write_bytes(memorymap.encode(emptied))
        self._map = str(files.memory_map)
        self.node: Node
        self.machine: Machine

    async def begin(self, **more: object) -> asyncio.Task[dict[str, Any]]:
        """The restore, under way."""
        self.node = Node(await self.launcher.spawn(SANDBOX))
        params = self.host.restore(memory={"kind": "layers", "map": self._map}, **more)
        return asyncio.ensure_future(self.node.keeper.request("restore", **params))

    def connect(self) -> None:
        """Its memory begins to fault; the pager listens already."""
        (jail,) = jails_under(self.host.below / "m" / SANDBOX)
        self.machine = Machine(str(jail / "pager.sock"), [BLOCKS])

    async def read(self) -> str:
        return str(await asyncio.wait_for(asyncio.to_thread(self.machine.answer), DEADLINE_S))

    async def have(self, frames: list[tuple[int, int]]) -> None:
        await self.node.keeper.request("pager-have", frames=self.remote.fetch(frames))


@pytest_asyncio.fixture
async def restored(host: Host) -> AsyncIterator[Restored]:
    host.start()
    made = Restored(host, await connected(host))
    yield made
    if hasattr(made, "machine"):
        made.machine.__exit__()
    await ended(made.node.keeper)
    assert await gone(made.node.keeper.facts["pid"])


async def test_a_node_fetches_what_the_pager_wants(restored: Restored) -> None:
    await (await restored.begin())
    restored.connect()
    restored.machine.send("read", 0, BLOCKS)
    while len(restored.remote.here) < len(restored.remote.table.frame_layer):
        await restored.have(await restored.node.wanted())
    assert await restored.read() == hashlib.sha256(MEMORY).hexdigest()
    stat = await restored.node.keeper.request("stat")
    assert stat["wanted"] == [] and stat["pager"]["frames_total"] == stat["pager"]["wanted_total"]


async def test_a_pager_that_serves_has_given_up_its_rights(restored: Restored) -> None:
    """What it hears from now on may be a hostile machine's."""
    await (await restored.begin())
    restored.connect()
    restored.machine.send("read", 0, 1)
    await restored.have(await restored.node.wanted())
    assert await restored.read() == hashlib.sha256(MEMORY[:BLOCK]).hexdigest()
    stat = await restored.node.keeper.request("stat")
    statuses = [status_of(stat[f"{name}_pid"]) for name in ("firecracker", "pager")]
    (firecracker,), (pager,) = ({*status["Uid"], *status["Gid"]} for status in statuses)
    assert FIRST_UID <= int(firecracker) == int(pager) - 1
    assert statuses[1]["Groups"] == [] and statuses[1]["NoNewPrivs"] == ["1"] and statuses[1]["Seccomp"] == ["2"]
    assert all(int(statuses[1][name][0], 16) == 0 for name in ("CapEff", "CapPrm", "CapInh", "CapAmb"))
    assert list(Path(f"/proc/{stat['pager_pid']}/root").iterdir()) == []


async def test_it_is_served_also_while_a_request_waits_for_these_pages(restored: Restored) -> None:
    """Firecracker faults while it loads, and the keeper waits for that load."""
    fifo = restored.host.folder / "wait-here"
    os.mkfifo(fifo)
    restoring = await restored.begin(state="wait-here", drives={"wait": str(fifo)})
    held = await asyncio.to_thread(fifo.open, "w")  # the stand-in is there
    restored.connect()
    restored.machine.send("read", 0, 1)
    await restored.have(await restored.node.wanted())
    assert await restored.read() == hashlib.sha256(MEMORY[:BLOCK]).hexdigest()
    assert not restoring.done()
    held.close()
    assert (await restoring)["backend"] == "uffd"


async def test_a_node_that_comes_later_hears_what_is_still_wanted(restored: Restored) -> None:
    await (await restored.begin())
    restored.connect()
    restored.machine.send("read", 0, 1)
    frames = await restored.node.wanted()
    await restored.have(frames[:1])
    assert await restored.read()
    former = restored.node
    restored.node = Node(await restored.launcher.attach(SANDBOX))
    await former.keeper.closed
    assert restored.node.keeper.facts["wanted"] == [list(frame) for frame in frames[1:]]
    assert await restored.node.wanted() == frames[1:]
    await restored.have(frames[1:])
    assert (await restored.node.keeper.request("stat"))["wanted"] == []


async def test_what_is_lost_ends_the_machine_with_that_cause(restored: Restored) -> None:
    await (await restored.begin())
    restored.connect()
    restored.machine.send("read", 0, 1)
    await restored.node.wanted()
    await restored.node.keeper.request("pager-lost", message="the store is gone", hint="start it")
    event = await restored.node.event()
    assert (event["event"], event["cause"]) == ("exited", "pager-died")
    assert "the store is gone" in event["detail"]


async def test_a_pager_that_is_done_goes_away_and_the_machine_lives(restored: Restored) -> None:
    await (await restored.begin())
    restored.connect()
    keeper = restored.node.keeper
    before = await keeper.request("stat")
    assert before["pager_pid"] and not before["resident"]
    await keeper.request("pager-populate")
    while len(restored.remote.here) < len(restored.remote.table.frame_layer):
        await restored.have(await restored.node.wanted())
    assert await gone(before["pager_pid"])
    after = await keeper.request("stat")
    assert (after["state"], after["pager_pid"], after["resident"]) == ("running", 0, True)
    assert after["pager"]["frames"] == after["pager"]["frames_total"]
    assert restored.machine.ask("read", 0, BLOCKS) == hashlib.sha256(MEMORY).hexdigest()
    await keeper.request("pager-populate")  # there is nobody left to do it: nothing happens
    await keeper.request("pager-have", frames=[])
    await keeper.request("pause")
    await keeper.request("continue")


@pytest.mark.parametrize("frames", [None, 5, [1, 2], [[1]], [[1, 2, 3]], [["1", 2]], [[-1, 2]], [[True, 2]]])
async def test_frames_that_are_none_are_refused(restored: Restored, frames: object) -> None:
    await (await restored.begin())
    with pytest.raises(InvalidValue, match="pairs"):
        await restored.node.keeper.request("pager-have", frames=frames)
