"""Hooks of runs of several servers on one PostgreSQL: what a lost one owed another one delivers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import msgspec

from perdure.errors import Unavailable
from perdure.model import RunState
from perdure.runs.hook import Hook, RunHook
from perdure.runs.hooks import Courier
from perdure.testing.house import House, nothing, until
from perdure.testing.programs import works

Houses = Callable[[], House]


class Outside:
    """Who is told, and by which server. ``down``: what a server says does not arrive."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []  # delivery, body
        self.tries = 0
        self.down = False

    async def send(self, hook: Hook, delivery: str, body: bytes) -> None:
        self.tries += 1
        if self.down:
            raise Unavailable("nobody is there")
        self.told.append((delivery, msgspec.json.decode(body)))


async def up(houses: Houses, outside: Outside, *, opened: bool = True) -> House:
    house = houses()
    house.machines.program = works

    def engine_made(engine: Any) -> None:
        everything = Hook(url="http://all", states=list(RunState))
        engine.courier = Courier(house.log, house.clock, outside, {"all": everything}, "secret")

    house.before_open = engine_made
    if opened:
        await house.up()
    return house


def nothing_owed(house: House) -> Callable[[], Any]:
    async def none() -> bool:
        return not await house.context.kept("hook")

    return none


def tried(outside: Outside) -> Callable[[], Any]:
    async def once() -> bool:
        return outside.tries > 0

    return once


async def states(house: House, run_id: str) -> list[str]:
    entries = await house.entries(run_id)
    return [f"{run_id}:{entry.branch}:{entry.seq}" for entry in entries if entry.kind.startswith("run.")]


async def test_a_run_that_is_taken_over_is_told_of_to_its_end_each_state_once(houses: Houses) -> None:
    outside = Outside()
    first, second = await up(houses, outside, opened=False), await up(houses, outside)
    first.settings = dataclasses.replace(first.settings, idle_grace_s=60.0)  # it does not go to sleep meanwhile
    await first.up()
    run_id = await first.start(works, hooks=[RunHook(url="http://own")])
    await first.waits(run_id, "signal")
    begun = await states(first, run_id)

    async def told() -> bool:
        return len(outside.told) >= len(begun)

    await until(told)

    async def noted() -> bool:
        rows = {kept.name: kept.value for kept in await first.context.kept("hook")}
        return rows[f"{run_id}/all"].get("seq") == int(begun[-1].split(":")[2])

    await until(noted)
    await first.down()

    async def taken() -> bool:
        return run_id in second.engine._runs

    await until(taken)
    await second.engine.signal(run_id, "go", None)
    await second.ends(run_id)
    await until(nothing_owed(second))
    ids = [delivery for delivery, body in outside.told if body["hook"] == "all"]
    assert ids == await states(second, run_id)
    assert [body["state"] for _, body in outside.told if body["hook"] == "0"] == ["completed"]


async def test_what_a_lost_server_had_not_delivered_of_an_ended_run_another_delivers(houses: Houses) -> None:
    silent, outside = Outside(), Outside()
    silent.down = True
    first, second = await up(houses, silent), await up(houses, outside)
    third = await up(houses, outside)
    run_id = await first.start(nothing)
    await first.ends(run_id)
    await first.released(run_id)
    await until(tried(silent))
    assert outside.told == []
    await first.down()
    await until(nothing_owed(second))
    assert [delivery for delivery, _ in outside.told] == await states(second, run_id)
    assert third.engine.courier is not None and not third.engine.courier._told


async def test_what_a_lost_server_that_began_later_had_not_delivered_another_delivers(houses: Houses) -> None:
    silent, outside = Outside(), Outside()
    silent.down = True
    second = await up(houses, outside)
    courier = second.engine.courier
    assert courier is not None

    async def alone() -> bool:
        return courier._servers == {second.server}

    await until(alone)
    first = await up(houses, silent)
    run_id = await first.start(nothing)
    await first.ends(run_id)
    await first.released(run_id)
    await until(tried(silent))
    await first.down()
    await until(nothing_owed(second))
    assert [delivery for delivery, _ in outside.told] == await states(second, run_id)


async def test_what_a_server_that_lives_owes_no_other_delivers(houses: Houses) -> None:
    silent, outside = Outside(), Outside()
    silent.down = True
    first = await up(houses, silent)
    run_id = await first.start(nothing)
    await first.ends(run_id)
    await first.released(run_id)
    await until(tried(silent))
    second = await up(houses, outside)
    courier = second.engine.courier
    assert courier is not None

    async def looked() -> bool:
        return courier._servers == {first.server, second.server}

    await until(looked)
    assert not courier._told and outside.tries == 0
    silent.down = False
    await until(nothing_owed(second))
    assert outside.tries == 0


async def test_what_a_server_owes_that_began_since_the_last_beat_no_other_delivers(houses: Houses) -> None:
    silent, outside = Outside(), Outside()
    silent.down = True
    second = await up(houses, outside)
    courier = second.engine.courier
    assert courier is not None
    first = await up(houses, silent)
    run_id = await first.start(nothing)
    await first.ends(run_id)
    await first.released(run_id)
    await until(tried(silent))
    courier._servers = frozenset({second.server, "lost"})
    courier.look(frozenset({second.server}))  # those that lived before the first one began
    assert courier._claiming is not None
    await courier._claiming
    assert not courier._told and outside.tries == 0
    silent.down = False
    await until(nothing_owed(second))
    assert outside.tries == 0


async def test_a_home_that_starts_again_goes_on_with_its_hooks(houses: Houses) -> None:
    outside = Outside()
    outside.down = True
    house = await up(houses, outside)
    ended = await house.start(nothing)
    await house.ends(ended)
    await house.released(ended)
    goes = await house.start(works)
    await house.waits(goes, "signal")
    await house.down()
    outside.down = False
    house.machines.program = works
    await house.up()
    await house.engine.signal(goes, "go", None)
    await house.ends(goes)
    await until(nothing_owed(house))
    for run_id in (ended, goes):
        assert [one for one, _ in outside.told if one.startswith(run_id)] == await states(house, run_id)


async def test_a_server_that_was_believed_lost_delivers_nothing_that_another_took(houses: Houses) -> None:
    silent, outside = Outside(), Outside()
    silent.down = True
    first, second = await up(houses, silent), await up(houses, outside)
    run_id = await first.start(nothing)
    await first.ends(run_id)
    await first.released(run_id)
    await until(tried(silent))
    assert first.engine.tenure is not None and first.context.leases is not None
    lost = first.server
    courier = first.engine.courier
    assert courier is not None
    courier.look = lambda servers: None  # type: ignore[method-assign]
    await first.context.leases.remove(lost, None)
    await until(nothing_owed(second))
    assert [delivery for delivery, _ in outside.told] == await states(second, run_id)

    async def anew() -> bool:
        return first.server != lost and not courier._busy

    await until(anew)
