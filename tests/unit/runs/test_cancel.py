"""Cancelling a run: its program is told once, may clean up, and is ended when it does not."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from perdure.errors import Conflict
from perdure.model import RunState
from perdure.testing.clock import FakeClock
from perdure.testing.house import QUICK
from perdure.testing.machines import Ask, Effect
from perdure.testing.programs import Steps, approval, chat


def is_told(said: Any) -> bool:
    return said.status == 409 and said.value["error"]["code"] == "cancelled"


async def test_the_wait_of_a_sleeping_run_tells_it_and_it_cleans_up(house: Any) -> None:
    undone = []

    def program() -> Steps:
        answer = yield approval()
        assert is_told(answer), answer
        step = yield Ask("step", {"name": "undo", "on_doubt": "retry"})
        yield Effect(lambda: undone.append(step.value["status"]))
        yield Ask("step/end", {"result": None}, at=1)
        yield Ask("fail", {"error": {"code": "cancelled", "message": "as I was told"}})

    run_id = await house.start(program)
    await house.reaches(run_id, RunState.SUSPENDED)
    await house.engine.cancel(run_id, "not needed")
    info = await house.ends(run_id)
    assert (info.state, info.error["message"], info.ending) == (RunState.CANCELLED, "not needed", None)
    assert undone == ["run"]
    assert house.machines.done[:3] == ["start", "suspend", "resume"]
    completed = (await house.entries(run_id, "wait.completed"))[0].payload
    assert completed["outcome"] == "cancelled"
    assert (await house.entries(run_id, "run.cancelled"))[0].payload["reason"] == "not needed"


async def test_a_run_that_waits_for_nothing_is_told_by_its_next_call_once(house: Any) -> None:
    go, said = asyncio.Event(), []

    def program() -> Steps:
        yield Ask("emit", {"name": "begun"})
        for _ in range(3):
            said.append((yield Ask("emit", {"name": "on"})))
        yield Ask("complete", {"result": "whatever"})

    real = house.engine.answer

    async def held(call: Any, token: str) -> Any:
        if call.ordinal == 1:
            await go.wait()
        return await real(call, token)

    house.machines.door = held
    run_id = await house.start(program)
    run = house.engine._runs[run_id]
    assert await run.until(lambda: run.state is RunState.RUNNING, 10)
    while not await house.entries(run_id, "emit"):
        await run.until(lambda: False, 0.01)
    await house.engine.cancel(run_id)
    await house.engine.cancel(run_id, "again changes nothing")
    go.set()
    info = await house.ends(run_id)
    assert [is_told(answer) for answer in said] == [True, False, False]
    # it ends as it was to end, whatever it returned
    assert (info.state, info.result, info.error["message"]) == (RunState.CANCELLED, None, "cancelled")
    assert len(await house.entries(run_id, "ending.told")) == len(await house.entries(run_id, "ending")) == 1


async def test_a_machine_that_is_lost_while_it_cleans_up_is_told_at_the_same_place(house: Any) -> None:
    life, cleaning, said = 1, asyncio.Event(), []

    def program() -> Steps:
        said.append((yield approval()))
        yield Ask("emit", {"name": "cleaned"})
        if life == 1:
            cleaning.set()
            yield Ask("wait", {"kind": "signal", "name": "lost"}, at=5)
        yield Ask("complete", {"result": None}, at=6)

    run_id = await house.start(program)
    await house.reaches(run_id, RunState.WAITING, RunState.SUSPENDED)
    await house.engine.cancel(run_id)
    await asyncio.wait_for(cleaning.wait(), 10)
    await house.restart()
    life = 2
    await house.kill_machine(run_id)
    assert (await house.ends(run_id)).state is RunState.CANCELLED
    assert len(said) >= 2 and all(is_told(answer) for answer in said)
    assert len(await house.entries(run_id, "emit")) == 1


async def test_a_program_that_goes_on_is_ended_at_the_end_of_its_time(house: Any) -> None:
    house.settings = dataclasses.replace(QUICK, idle_grace_s=0)
    clock = await house.at(FakeClock())

    def program() -> Steps:
        yield approval()
        yield approval()  # deaf

    run_id = await house.start(program)
    await house.reaches(run_id, RunState.SUSPENDED)
    await house.engine.cancel(run_id, clean_up_s=5)
    run = house.engine._runs[run_id]
    assert await run.until(lambda: run.state is RunState.WAITING and run.record.ending, 10)
    clock.move(4)
    await house.restart()  # the deadline is in the record
    run = house.engine._runs[run_id]
    assert run.record.ending.until == clock.time() + 1
    clock.move(1)
    assert (await house.ends(run_id)).state is RunState.CANCELLED
    await house.released(run_id)
    assert house.machines.sandboxes == {}


async def test_by_force_nobody_is_told(house: Any) -> None:
    def program() -> Steps:
        yield approval()

    run_id = await house.start(program)
    await house.reaches(run_id, RunState.SUSPENDED)
    await house.engine.cancel(run_id, clean_up_s=0)
    assert (await house.engine.info(run_id)).state is RunState.CANCELLED
    await house.released(run_id)
    assert house.machines.done == ["start", "suspend"]
    with pytest.raises(Conflict, match="has ended: it is cancelled"):
        await house.engine.cancel(run_id)


async def test_force_ends_what_cleans_up_too_long(house: Any) -> None:
    def program() -> Steps:
        yield approval()
        yield approval()

    run_id = await house.start(program)
    await house.reaches(run_id, RunState.WAITING, RunState.SUSPENDED)
    await house.engine.cancel(run_id, "first")
    await house.engine.cancel(run_id, "second", clean_up_s=0)
    info = await house.engine.info(run_id)
    assert (info.state, info.error["message"]) == (RunState.CANCELLED, "first")


async def test_a_program_that_knows_nothing_of_runs_gets_its_stop_signal(house: Any) -> None:
    def program() -> Steps:
        yield approval()

    run_id = await house.start(program, source="", file="", function="", command=["sh"])
    await house.reaches(run_id, RunState.WAITING)
    house.engine._runs[run_id].quiet_since += 1e6  # it is not put to sleep
    await house.engine.cancel(run_id, "enough")
    info = await house.ends(run_id)
    assert (info.state, info.error["message"]) == (RunState.CANCELLED, "enough")
    assert house.machines.done[:2] == ["start", "stop"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_model_call_in_flight_is_given_up(house: Any, provider: Any, stream: bool) -> None:
    provider.hold = asyncio.Event()
    said = []

    def program() -> Steps:
        said.append((yield chat("one", stream=True)))
        yield Ask("complete", {"result": 1})

    run_id = await house.start(program)
    await asyncio.wait_for(provider.reached.wait(), 10)
    if not stream:
        house.machines.hang_up()  # it has no part of the answer yet
    await house.engine.cancel(run_id)
    assert not house.gateway.is_in_flight(run_id)
    if not stream:
        house.machines.door = house.engine.answer
    assert (await house.ends(run_id)).state is RunState.CANCELLED
    assert provider.requests == 1
    told = said[0].value if isinstance(said[0].value, str) else said[0].value["error"]["code"]
    assert "cancelled" in told
    provider.hold.set()


async def test_what_was_not_started_ends_at_once(house: Any) -> None:
    held = asyncio.Event()
    house.machines.before["start"] = held.wait

    def program() -> Steps:
        yield approval()

    run_id = await house.start(program)
    await house.reaches(run_id, RunState.STARTING)
    await house.engine.cancel(run_id)
    assert (await house.engine.info(run_id)).state is RunState.CANCELLED
    held.set()
    await house.released(run_id)
    assert house.machines.sandboxes == {}
