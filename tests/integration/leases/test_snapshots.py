"""What another server goes on from when one is lost: a snapshot at the same node, one in the store that nodes share, or
the log; and what becomes of the sandboxes that stayed at a node."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Callable, Generator
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec
import pytest

from perdure.cli.perdure._story import Story
from perdure.errors import Unavailable
from perdure.model import RunState
from perdure.runs import engine, pushes, restoring
from perdure.runs.policy import Policy
from perdure.runs.record import from_head
from perdure.runs.strays import is_stray
from perdure.testing.house import DEADLINE_S, House, until
from perdure.testing.machines import Ask, Effect, LocalMachines

Houses = Callable[[], House]
STORE = "s3://bucket/runs"


def counting(memory: list[str]) -> Callable[[], Generator[Any, Any, Any]]:
    """A step, what its memory alone knows, a wait for the signal ``go``, and another step. ``memory``: each time that a
    machine came by here."""

    def program() -> Generator[Any, Any, Any]:
        begun = yield Ask("step", {"name": "before", "on_doubt": "ask"})
        if begun.value["status"] == "run":
            yield Effect(lambda: memory.append("step"))
            yield Ask("step/end", {"result": "before"}, at=0)
        yield Effect(lambda: memory.append("came by"))
        yield Ask("wait", {"kind": "signal", "name": "go"})
        yield Ask("complete", {"result": "fine"})

    return program


async def up(houses: Houses, machines: LocalMachines | None = None, *, store: str = "") -> House:
    """``machines``: of another house, at the same node."""
    house = houses()
    if machines is not None:
        house.machines = LocalMachines(machines.program, machines)
    house.settings = dataclasses.replace(house.settings, snapshot_store=store)
    await house.up()
    return house


async def asleep(house: House, memory: list[str], *, is_pushed: bool = False) -> str:
    run_id = await house.start(counting(memory))
    await house.reaches(run_id, RunState.SUSPENDED)
    if is_pushed:
        run = house.engine._runs[run_id]
        assert await run.until(lambda: run.record.restorable[-1].store == STORE, 10)
    return run_id


async def shown(house: House, run_id: str) -> str:
    story = Story(400)
    return "\n".join(line for entry in await house.entries(run_id) for line in story.lines(entry))


async def test_at_the_same_node_the_sandbox_itself_goes_on(houses: Houses) -> None:
    memory: list[str] = []
    first = await up(houses)
    second, third = await up(houses, first.machines), await up(houses)
    run_id = await asleep(first, memory)
    info = await first.engine.info(run_id)
    assert info.node == first.machines.node and info.snapshots[-1]["node"] == first.machines.node.id
    await first.down()
    await until(lambda: second.engine.has(run_id))  # not the third, whose share it was as well
    assert not third.engine.has(run_id)
    await second.engine.signal(run_id, "go", 1)
    assert (await second.ends(run_id)).result == "fine"
    assert memory == ["step", "came by"]  # it went on where it was
    kinds = [entry.kind for entry in await second.entries(run_id)]
    assert "run.resuming" in kinds and "run.recovering" not in kinds
    assert "resume" in second.machines.done and "fork" not in second.machines.done


async def test_at_another_node_the_copy_in_the_shared_store_goes_on(houses: Houses) -> None:
    memory: list[str] = []
    first, second = await up(houses, store=STORE), await up(houses, store=STORE)
    second.machines.stores = first.machines.stores
    run_id = await asleep(first, memory, is_pushed=True)
    await first.down()
    await until(lambda: second.engine.has(run_id))
    await second.engine.signal(run_id, "go", 1)
    info = await second.ends(run_id)
    assert info.result == "fine" and info.node == second.machines.node
    assert memory == ["step", "came by"]
    assert second.machines.done[:2] == ["pull", "fork"]
    told = await shown(second, run_id)
    assert f"from the copy of the snapshot in {STORE}" in told
    assert f"at {second.machines.node.said}; it was at {first.machines.node.said}" in told


async def test_a_store_that_is_away_for_a_moment_costs_no_run_its_machine(
    houses: Houses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restoring, "PULL_PAUSE_S", 0.01)
    memory: list[str] = []
    first, second = await up(houses, store=STORE), await up(houses, store=STORE)
    second.machines.stores = first.machines.stores
    away = [True, True]

    async def pull() -> None:
        if away:
            away.pop()
            raise Unavailable("the store does not answer")

    second.machines.before["pull"] = pull
    run_id = await asleep(first, memory, is_pushed=True)
    await first.down()
    await until(lambda: second.engine.has(run_id))
    await second.engine.signal(run_id, "go", 1)
    assert (await second.ends(run_id)).result == "fine"
    assert memory == ["step", "came by"] and not away
    assert "passed over" not in await shown(second, run_id)


@pytest.mark.parametrize("store", ["", STORE])
async def test_what_cannot_be_reached_is_passed_over_for_the_log_and_told(houses: Houses, store: str) -> None:
    memory: list[str] = []
    first, second = await up(houses, store=store), await up(houses, store=store)
    run_id = await asleep(first, memory, is_pushed=bool(store))
    second.machines.program = counting(memory)
    await first.down()
    await until(lambda: second.engine.has(run_id))
    await second.engine.signal(run_id, "go", 1)
    assert (await second.ends(run_id)).result == "fine"
    assert memory == ["step", "came by", "came by"]  # the step was answered from the log
    told = await shown(second, run_id)
    why = f"it does not come from {STORE}" if store else f"it is at {first.machines.node.said} only"
    assert f"passed over: {why}" in told and "begins again" in told
    info = await second.engine.info(run_id)
    assert [one["node"] for one in info.snapshots] == ([first.machines.node.id] if store else [])


async def test_a_snapshot_that_was_not_in_the_store_yet_is_brought_by_the_next_start(houses: Houses) -> None:
    memory: list[str] = []
    house = await up(houses, store=STORE)
    house.settings = dataclasses.replace(house.settings, shelve_after_s=0.0)

    async def away() -> None:
        raise Unavailable("the store is away")

    house.machines.before["push"] = away
    run_id = await asleep(house, memory)
    await house.down()
    del house.machines.before["push"]
    await house.up()
    await until(lambda: "push" in house.machines.done)
    await until(lambda: run_id in house.engine._shelf)  # and then it is put up
    assert (await house.engine.info(run_id)).snapshots[-1]["store"] == STORE


async def test_another_store_has_all_that_runs_need_of_the_one_before(houses: Houses) -> None:
    """So that the one before may be removed as a whole (docs/several-servers.md)."""
    memory: list[str] = []
    first = await up(houses, store=STORE)
    run_id = await asleep(first, memory, is_pushed=True)
    await first.down()
    first.settings = dataclasses.replace(first.settings, snapshot_store="s3://bucket/next")
    await first.up()

    async def is_brought() -> bool:
        return (await first.engine.info(run_id)).snapshots[-1]["store"] == "s3://bucket/next"

    await until(is_brought)
    for place in [place for place in first.machines.stores if place[0] == STORE]:
        del first.machines.stores[place]
    second = await up(houses, store="s3://bucket/next")
    second.machines.stores = first.machines.stores
    await first.down()
    await until(lambda: second.engine.has(run_id))
    await second.engine.signal(run_id, "go", 1)
    assert (await second.ends(run_id)).result == "fine"
    assert memory == ["step", "came by"]  # from the copy


@pytest.mark.parametrize("is_shelved", [False, True])
async def test_a_store_that_is_away_for_long_has_the_snapshot_when_it_is_back(
    houses: Houses, monkeypatch: pytest.MonkeyPatch, is_shelved: bool
) -> None:
    monkeypatch.setattr(pushes, "TRIES", 1)
    for module in (pushes, engine):
        monkeypatch.setattr(module, "LATER_S", 0.2)
    house = await up(houses, store=STORE)
    if is_shelved:
        house.settings = dataclasses.replace(house.settings, shelve_after_s=0.0)
        await house.down()
        await house.up()
    tried = 0

    async def away() -> None:
        nonlocal tried
        tried += 1
        if tried < 3:
            raise Unavailable("the store is away")

    house.machines.before["push"] = away
    run_id = await asleep(house, [])
    if is_shelved:
        await until(lambda: run_id in house.engine._shelf)
    await until(lambda: "push" in house.machines.done)
    async with house.engine._shelf.held(run_id) as run:
        assert run is not None and await run.until(lambda: run.record.restorable[-1].store == STORE, 10)


async def test_a_snapshot_that_was_given_up_on_its_way_to_the_store_is_followed_by_the_newest(houses: Houses) -> None:
    house = await up(houses, store=STORE)
    begun, gate = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        begun.set()
        await gate.wait()

    house.machines.before["push"] = slow
    policy = Policy(idle_grace_s=3600.0, snapshots_kept=1)
    run_id = await house.start(counting([]), policy=policy)
    await house.reaches(run_id, RunState.WAITING)
    await house.engine.checkpoint(run_id)
    await begun.wait()
    newest = await house.engine.checkpoint(run_id)
    await until(lambda: "forget" in house.machines.done)
    gate.set()
    run = house.engine._runs[run_id]
    assert await run.until(lambda: run.record.restorable[-1].store == STORE, 10)
    assert run.record.restorable[-1].digest == newest.digest


async def test_a_node_that_comes_back_is_rid_of_what_goes_on_elsewhere_and_of_nothing_else(houses: Houses) -> None:
    memory: list[str] = []
    first, second = await up(houses), await up(houses)
    asleep_id, gone_id = await asleep(first, memory), await asleep(first, memory)
    own = first.machines.create(first.machines.sandboxes[first.sandbox(gone_id)].spec, counting(memory))
    left = {run_id: first.sandbox(run_id) for run_id in (asleep_id, gone_id)}
    second.machines.program = counting(memory)
    await first.down()
    await until(lambda: second.engine.has(asleep_id) and second.engine.has(gone_id))
    await second.engine.signal(gone_id, "go", 1)
    assert (await second.ends(gone_id)).result == "fine"
    await second.released(gone_id)
    await first.up()
    await until(lambda: left[gone_id] not in first.machines.sandboxes)
    # the other's snapshot is still what its run would go on from; and one that nobody hears is somebody's own
    assert left[asleep_id] in first.machines.sandboxes and own in first.machines.sandboxes
    assert first.machines.done.count("discard") == 1


async def test_many_that_were_left_are_removed_by_one_look_at_all(houses: Houses) -> None:
    memory: list[str] = []
    first, second = await up(houses), await up(houses)
    runs = [await asleep(first, memory) for _ in range(12)]
    second.machines.program = counting(memory)
    await first.down()
    for run_id in runs:
        await until(lambda run_id=run_id: second.engine.has(run_id))
        await second.engine.signal(run_id, "go", 1)
        await second.ends(run_id)
        await second.released(run_id)
    looks = 0

    async def look() -> None:
        nonlocal looks
        looks += 1

    first.machines.before["of_runs"] = look
    await first.up()
    await until(lambda: not first.machines.sandboxes)
    assert first.machines.done.count("discard") == len(runs)
    assert looks <= 2  # its start, and a node that connects: not one for each


async def test_what_becomes_a_stray_later_is_removed_then(houses: Houses, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.runs.strays.AGAIN_S", 0.05)
    memory: list[str] = []
    first, second = await up(houses), await up(houses)
    run_id = await asleep(first, memory)
    left = first.sandbox(run_id)
    second.machines.program = counting(memory)
    await first.down()
    await until(lambda: second.engine.has(run_id))
    await first.up()
    await until(lambda: first.engine._strays._others)
    await second.engine.signal(run_id, "go", 1)  # from now on it goes on from its log
    await until(lambda: left not in first.machines.sandboxes)
    assert (await second.ends(run_id)).result == "fine"


async def test_what_a_lost_server_left_is_removed_by_another_one_at_its_node(
    houses: Houses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.runs.strays.AGAIN_S", 0.05)
    monkeypatch.setattr("perdure.runs.tenure.LEFT_LOOKS", 0)
    memory: list[str] = []
    first = await up(houses)
    beside, elsewhere = await up(houses, first.machines), await up(houses)
    await until(lambda: beside.engine._strays._is_listed)

    async def nothing() -> None:
        """It is busy: whoever is at another node is faster."""

    beside.engine.tenure._take_over = nothing  # type: ignore[union-attr, method-assign]  # it has a lease
    run_id = await asleep(first, memory)
    left = first.sandbox(run_id)
    elsewhere.machines.program = counting(memory)
    await first.down()
    await until(lambda: elsewhere.engine.has(run_id))
    await elsewhere.engine.signal(run_id, "go", 1)
    assert (await elsewhere.ends(run_id)).result == "fine"
    await until(lambda: left not in beside.machines.sandboxes)


async def test_a_sandbox_that_its_run_may_go_on_from_is_no_stray(houses: Houses) -> None:
    house = await up(houses)
    run_id = await asleep(house, [])
    record = house.engine._runs[run_id].record
    (seen,) = await house.machines.of_runs()
    here, elsewhere = house.machines.node, LocalMachines(counting([])).node
    replaced = partial(msgspec.structs.replace, record)
    later = record.epoch + 1
    assert not is_stray(seen, record, here)
    assert not is_stray(seen, replaced(epoch=later), here)  # named, whatever epoch it is
    assert not is_stray(seen, replaced(epoch=later, node=None), here)  # nobody wrote down where it is
    assert not is_stray(seen, replaced(sandbox_id="other"), here)  # it is being made, in the epoch of now
    assert is_stray(seen, replaced(epoch=later, sandbox_id="other"), here)
    assert is_stray(seen, replaced(epoch=later, node=elsewhere), here)
    assert is_stray(seen, replaced(released=True), here)
    assert not is_stray(type(seen)(id=seen.id, run_id=run_id, epoch=None), replaced(released=True), here)


@pytest.mark.parametrize("seed", [1, 2])
async def test_servers_come_and_go_and_no_sandbox_is_removed_that_a_run_goes_on_from(
    houses: Houses, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Two servers at one node and one at another, each killed and started again; half of the time with a store."""
    monkeypatch.setattr("perdure.runs.strays.AGAIN_S", 0.02)
    chance, turns = random.Random(seed), 3
    first = await up(houses, store=STORE if seed % 2 else "")
    made = [first, await up(houses, first.machines, store=first.settings.snapshot_store)]
    made.append(await up(houses, store=first.settings.snapshot_store))
    wrong: list[str] = []
    for house in made:
        house.machines.stores = first.machines.stores
        house.machines.program = patient(turns)
        house.machines.discard = watched(house, wrong)  # type: ignore[method-assign]
    runs = [await chance.choice(made).start(patient(turns)) for _ in range(9)]
    is_up = dict.fromkeys(range(3), True)
    for turn in range(turns):
        for run_id in runs:
            await until(partial(waits_for, made, is_up, run_id, f"go{turn}"), 3 * DEADLINE_S)
        for number, house in enumerate(made):  # one of them stays
            if is_up[number] and sum(is_up.values()) > 1 and chance.random() < 0.6:
                await house.down()
                is_up[number] = False
        for run_id in runs:
            await signalled(made, is_up, run_id, f"go{turn}")
        for number, house in enumerate(made):
            if not is_up[number]:
                await house.up()
                is_up[number] = True
    for run_id in runs:
        await until(partial(has_ended, first, run_id), 3 * DEADLINE_S)
        assert (await first.engine.info(run_id)).result == turns
        await first.context.verify(run_id)
    await until(lambda: not any(house.machines.sandboxes for house in made))
    assert wrong == []
    removed = {operation for house in made for operation in house.machines.done}
    assert {"start", "resume", "discard"} <= removed


def patient(turns: int) -> Callable[[], Generator[Any, Any, Any]]:
    def program() -> Generator[Any, Any, Any]:
        for turn in range(turns):
            yield Ask("wait", {"kind": "signal", "name": f"go{turn}"})
        yield Ask("complete", {"result": turns})

    return program


def watched(house: House, wrong: list[str]) -> Callable[[str], Any]:
    """Writes down what is removed although its run may go on from it."""
    discard = house.machines.discard

    async def checked(sandbox_id: str) -> None:
        run_id = house.machines.sandboxes[sandbox_id].spec.labels["run"]
        record = from_head(await house.context.head(run_id))
        here = record.node is not None and record.node.id == house.machines.node.id
        if here and record.sandbox_id == sandbox_id and not record.released:
            wrong.append(f"{sandbox_id} of {run_id}, which is {record.state}")
        await discard(sandbox_id)

    return checked


async def waits_for(made: list[House], is_up: dict[int, bool], run_id: str, name: str) -> bool:
    house = next(house for number, house in enumerate(made) if is_up[number])
    record = from_head(await house.context.head(run_id))
    return record.state is RunState.SUSPENDED and [wait.name for wait in record.waits.open] == [name]


async def signalled(made: list[House], is_up: dict[int, bool], run_id: str, name: str) -> None:
    """At whoever has the run, once somebody has."""

    async def sent() -> bool:
        for number, house in enumerate(made):
            if is_up[number] and house.engine.has(run_id):
                with suppress(Unavailable):
                    await house.engine.signal(run_id, name, None, f"id-{name}")
                    return True
        return False

    await until(sent, 3 * DEADLINE_S)


async def has_ended(house: House, run_id: str) -> bool:
    return (await house.engine.info(run_id)).state is RunState.COMPLETED
