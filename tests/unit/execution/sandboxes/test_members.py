"""Sandboxes as members of networks, on a node where nothing lives: who hears of whom, who listens, which addresses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from perdure.errors import Conflict
from perdure.execution.network.publishing import Published
from perdure.execution.sandboxes import forking
from perdure.execution.sandboxes.record import Folder, Record
from perdure.execution.sandboxes.sandbox import Sandbox
from perdure.execution.sandboxes.sandboxes import Sandboxes
from perdure.execution.snapshots.store import Store
from perdure.formats.manifest import Origin
from perdure.host.paths import Home
from perdure.model import Fork, PublishedPort, SandboxSpec, SandboxState
from perdure.testing.sandboxes import exited
from perdure.testing.snapshots import BLOCKS, Bench, blocks_of
from perdure.testing.stillmachines import StillGround, StillMachine

IDS = ["a0a0a0a0a0a0", "b0b0b0b0b0b0", "c0c0c0c0c0c0"]
PORT = PublishedPort(guest_port=80, host_ip="127.0.0.1")
WITHIN_S = 20.0
Make = Callable[..., Record]


class Ground(StillGround):
    """Nothing lives below."""

    async def living_launcher(self) -> None:
        return None


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path, tmp_path / "cache").make()


@pytest.fixture
async def every(home: Home) -> Sandboxes:
    nothing: Any = None
    return Sandboxes(home, Ground(home, "warm"), nothing, Store(home.store), nothing)


@pytest.fixture
def make(home: Home) -> Make:
    """A record before the node loads it."""

    def made(sandbox_id: str, **values: Any) -> Record:
        spec = values.pop("spec", SandboxSpec(image="i"))
        return exited(home.sandboxes, sandbox_id, msgspec.structs.replace(spec, name=sandbox_id[:3]), **values)

    return made


class Listener(StillMachine):
    """``names``: what it was told, each time."""

    def __init__(self) -> None:
        super().__init__({})
        self.names: list[dict[str, str]] = []

    async def request(self, op: str, **params: Any) -> dict[str, Any]:
        if op == "names":
            self.names.append(params["names"])
        return await super().request(op, **params)


async def settle(sandbox: Sandbox) -> None:
    while not all(task.done() for task in sandbox._tasks):
        await asyncio.gather(*sandbox._tasks)


async def test_only_those_who_may_know_a_name_hear_of_it(every: Sandboxes, make: Make) -> None:
    every.networks.load()
    every.networks.create("office")
    make(IDS[0])
    make(IDS[1], spec=SandboxSpec(image="i", networks=["bridge", "office"]))
    make(IDS[2], spec=SandboxSpec(image="i", networks=["office"]))
    await every.load()
    machines = {}
    for sandbox in every.all():
        machines[sandbox.id] = sandbox.machine = Listener()  # type: ignore[assignment]  # it stands for a Machine
    every.rename(IDS[0], "other")  # which is in the network alone whose members do not know each other
    for sandbox in every.all():
        await settle(sandbox)
    assert [machine.names for machine in machines.values()] == [[], [], []]
    every.rename(IDS[1], "another")
    for sandbox in every.all():
        await settle(sandbox)
    assert not machines[IDS[0]].names
    (heard,) = machines[IDS[2]].names
    assert heard["another"] == every.find("another").record.addresses["office"]


async def test_one_that_ends_as_the_node_starts_listens_no_more(
    every: Sandboxes, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its main process exits in the moment in which the node is about to listen for it."""
    spec = SandboxSpec(image="i", ports=[PORT])
    make(IDS[0], spec=spec, state=SandboxState.SUSPENDED, exit_status=None, finished=None)
    opened = Published.open

    async def exits(sandbox: Sandbox) -> None:
        async with sandbox.moving:
            sandbox.record = msgspec.structs.replace(sandbox.record, state=SandboxState.RUNNING)
            sandbox.exited("exited", "exit", "", 0)
            await asyncio.sleep(0)

    async def opens(published: Published, ports: Any) -> Any:
        ending = asyncio.create_task(exits(every.find(IDS[0])))
        await asyncio.wait({ending}, timeout=0.1)
        every.find(IDS[0])._tasks.add(ending)
        return await opened(published, ports)

    monkeypatch.setattr(Published, "open", opens)
    async with asyncio.timeout(WITHIN_S):
        await every.load()
        await settle(every.find(IDS[0]))
    assert every.find(IDS[0]).state is SandboxState.EXITED
    assert every.find(IDS[0]).published is None


async def test_one_that_sleeps_listens_once_the_node_has_started(every: Sandboxes, make: Make) -> None:
    make(IDS[0], spec=SandboxSpec(image="i", ports=[PORT]), state=SandboxState.SUSPENDED)
    await every.load()
    assert every.find(IDS[0]).info().ports[0].host_port > 0
    await every.leave()


async def test_no_two_have_an_address_of_one_that_was_made_before_networks(
    every: Sandboxes, make: Make, home: Home
) -> None:
    """In whatever order the node reads them; and it keeps what it has got."""
    make(IDS[0])
    make(IDS[1], addresses={"bridge": "10.88.0.2"})
    make(IDS[2], spec=SandboxSpec(image="i", networks=["none"]))
    await every.load()
    assert {one.id: one.record.addresses for one in every.all()} == {
        IDS[0]: {"bridge": "10.88.0.3"},
        IDS[1]: {"bridge": "10.88.0.2"},
        IDS[2]: {},
    }
    assert Folder(home.sandboxes / IDS[0]).load().addresses == {"bridge": "10.88.0.3"}


async def test_what_publishes_ports_stays_in_a_network(every: Sandboxes, make: Make) -> None:
    make(IDS[0], spec=SandboxSpec(image="i", ports=[PORT]))
    await every.load()
    office = every.networks.create("office")
    with pytest.raises(Conflict, match="publishes ports, and bridge is the only network") as caught:
        await every.disconnect(every.networks.find("bridge"), IDS[0])
    assert "fcrun network connect" in caught.value.hint
    await every.connect(office, IDS[0])
    await every.disconnect(every.networks.find("bridge"), IDS[0])
    assert every.find(IDS[0]).record.addresses.keys() == {"office"}


def test_a_fork_has_a_name_of_its_own_only(tmp_path: Path) -> None:
    """Its origin answers to the aliases still: where two want a name, it is the older one's."""
    spec = SandboxSpec(image="i", aliases=["db"], ports=[PORT])
    bench = Bench(tmp_path)
    snapshot = bench.capture(bench.template(blocks_of([1] * BLOCKS)), {}, blocks_of(range(4)), sandbox_id=IDS[0])
    origin = Origin(main=IDS[0], spec=spec)
    fork = forking.record_of(IDS[1], "fork", Fork(), snapshot, origin, "")
    assert (fork.spec.aliases, [port.host_port for port in fork.spec.ports]) == ([], [0])
