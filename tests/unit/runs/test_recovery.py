"""Machines and servers that die: the run goes on, and no effect comes twice."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from perdure.model import RunState
from perdure.testing.clock import FakeClock
from perdure.testing.house import QUICK
from perdure.testing.machines import Ask, Effect
from perdure.testing.programs import Steps, approval, chat


def step(name: str, do: Callable[[], Any], on_doubt: str, at: int) -> Steps:
    """As ctx.step does it."""
    asked = yield Ask("step", {"name": name, "on_doubt": on_doubt}, at=at)
    if asked.value["status"] == "run":
        result = yield Effect(do)
        asked = yield Ask("step/end", {"result": result}, at=at)
    return asked.value


async def test_a_killed_machine_recovers_from_the_start_without_a_snapshot(house: Any, provider: Any) -> None:
    effects: list[str] = []

    def program() -> Steps:
        one = yield chat("one")
        yield from step("write", lambda: effects.append("write") or len(effects), "ask", 1)
        yield Ask("wait", {"kind": "signal", "name": "go"}, at=2)
        yield Ask("complete", {"result": one.value["choices"][0]["message"]["content"]}, at=3)

    house.settings = type(house.settings)(idle_grace_s=60, backoff_s=0.02)
    await house.down()
    await house.up()
    run_id = await house.start(program)
    await house.reaches(run_id, RunState.WAITING)
    for _ in range(3):
        await house.kill_machine(run_id)
        await house.reaches(run_id, RunState.RECOVERING, RunState.STARTING, RunState.RUNNING)
        await house.reaches(run_id, RunState.WAITING)
    await house.engine.signal(run_id, "go", None)
    info = await house.ends(run_id)
    assert info.result == "answer to one"
    assert (provider.requests, effects) == (1, ["write"])
    assert (info.turns_asked, info.turns_replayed, info.recoveries, info.epoch) == (1, 3, 3, 4)
    causes = [entry.payload["cause"] for entry in await house.entries(run_id, "run.recovering")]
    assert causes == ["machine-died"] * 3


@pytest.mark.parametrize("is_new", [True, False])
async def test_losses_count_in_a_row_with_nothing_new_between_them_whichever_server_heard_it(
    house: Any, is_new: bool
) -> None:
    house.settings = dataclasses.replace(QUICK, idle_grace_s=60, backoff_s=0.01, backoff_max_s=0.01)
    await house.restart()
    losses = house.settings.failures_max + 2

    def program() -> Steps:
        for number in range(losses if is_new else 1):
            yield Ask("wait", {"kind": "signal", "name": str(number)}, at=number)
        yield Ask("complete", {"result": "owl"}, at=losses)

    run_id = await house.start(program)

    async def waits_for(number: int, epoch: int) -> None:
        run = house.engine._runs[run_id]

        def is_there() -> bool:
            names = [wait.name for wait in run.record.waits.open]
            return (run.state, run.record.epoch, names) == (RunState.WAITING, epoch, [str(number)])

        await run.until(lambda: run.ended or is_there(), 20)

    for number in range(losses):
        await waits_for(number if is_new else 0, number + 1)
        if house.engine._runs[run_id].ended:
            break
        sandbox_id = house.sandbox(run_id)
        await house.down()
        await house.machines.kill(sandbox_id)
        await house.up()
        await waits_for(number if is_new else 0, number + 2)
        if is_new:
            await house.engine.signal(run_id, str(number), None)
    info = await house.ends(run_id)
    assert info.state is (RunState.COMPLETED if is_new else RunState.FAILED), info.error


async def test_a_machine_killed_in_the_middle_of_a_turn_attaches_to_it_again(house: Any, provider: Any) -> None:
    def program() -> Steps:
        yield approval()
        first = yield chat("one", stream=True)
        second = yield chat("two", stream=True)
        yield Ask("complete", {"result": [first.value.count("[DONE]"), second.value.count("[DONE]")]})

    run_id = await house.start(program)
    await house.reaches(run_id, RunState.SUSPENDED)
    provider.hold = asyncio.Event()
    await house.engine.approve(run_id, None, approved=True)
    await asyncio.wait_for(provider.reached.wait(), 10)
    await house.kill_machine(run_id)
    await house.reaches(run_id, RunState.RECOVERING, RunState.RUNNING)
    provider.hold.set()
    info = await house.ends(run_id)
    assert info.result == [1, 1]
    assert (provider.requests, info.turns_asked) == (2, 2)
    assert house.machines.done == ["start", "suspend", "resume", "resume"]


@pytest.mark.parametrize("state", ["waiting", "suspended"])
async def test_a_killed_server_goes_on(house: Any, provider: Any, state: str) -> None:
    def program() -> Steps:
        yield chat("one")
        verdict = yield approval()
        yield chat("two")
        yield Ask("complete", {"result": verdict.value["comment"]})

    if state == "waiting":
        house.settings = type(house.settings)(idle_grace_s=60)
        await house.down()
        await house.up()
    run_id = await house.start(program)
    await house.reaches(run_id, RunState(state))
    await house.down()
    await house.up()
    assert (await house.engine.info(run_id)).state is RunState(state)
    await house.engine.approve(run_id, None, approved=True, comment="go")
    info = await house.ends(run_id)
    assert (info.result, info.recoveries) == ("go", 0)
    assert provider.requests == 2


async def test_timers_run_out_while_no_server_lives(house: Any) -> None:
    clock = await house.at(FakeClock())

    def program() -> Steps:
        yield Ask("wait", {"kind": "time", "seconds": 86400})
        yield Ask("complete", {"result": "woken"})

    run_id = await house.start(program)
    await house.waits(run_id, "time")
    clock.move(60)
    await house.reaches(run_id, RunState.SUSPENDED)
    await house.down()
    clock.move(86400)
    await house.up()
    assert (await house.ends(run_id)).result == "woken"


async def test_a_machine_that_dies_while_no_server_lives_is_recovered(house: Any) -> None:
    house.settings = type(house.settings)(idle_grace_s=60, backoff_s=0.02)
    await house.down()
    await house.up()

    def program() -> Steps:
        verdict = yield approval()
        yield Ask("complete", {"result": verdict.value["by"]})

    run_id = await house.start(program)
    await house.reaches(run_id, RunState.WAITING)
    sandbox_id = house.sandbox(run_id)
    await house.down()
    await house.machines.kill(sandbox_id, cause="keeper-died")
    await house.up()
    await house.reaches(run_id, RunState.RECOVERING, RunState.STARTING, RunState.RUNNING)
    await house.engine.approve(run_id, None, approved=True, by="bob")
    info = await house.ends(run_id)
    assert (info.result, info.recoveries) == ("bob", 1)


@pytest.mark.parametrize(
    ("on_doubt", "approved", "effects_wanted"),
    [("retry", None, 2), ("ask", True, 2), ("ask", False, 1), ("fail", None, 1)],
)
async def test_a_step_in_doubt(house: Any, on_doubt: str, approved: bool | None, effects_wanted: int) -> None:
    effects: list[int] = []
    keys: list[str] = []
    reached = asyncio.Event()
    lives = 0

    def program() -> Steps:
        nonlocal lives
        lives += 1
        asked = yield Ask("step", {"name": "pay", "on_doubt": on_doubt}, at=0)
        value = asked.value
        if value["status"] == "run":
            keys.append(value["idempotency_key"])
            yield Effect(lambda: effects.append(1))
            if lives == 1:
                reached.set()
                yield Ask("wait", {"kind": "signal", "name": "never"}, lane="other")
            ended = yield Ask("step/end", {"result": "paid"}, at=0)
            value = {"status": "done", **ended.value}
        yield Ask("complete", {"result": value}, at=1)

    run_id = await house.start(program)
    await asyncio.wait_for(reached.wait(), 10)
    await house.reaches(run_id, RunState.WAITING)
    await house.kill_machine(run_id)
    if on_doubt == "ask":
        await house.reaches(run_id, RunState.RECOVERING, RunState.STARTING)
        await house.reaches(run_id, RunState.WAITING)
        doubts = [wait for wait in (await house.engine.info(run_id)).waits if wait["kind"] == "doubt"]
        assert "may have taken effect" in doubts[0]["name"]
        await house.engine.approve(run_id, None, approved=approved, by="ann")
    info = await house.ends(run_id)
    assert len(effects) == effects_wanted
    assert len(set(keys)) == 1
    if effects_wanted == 2:
        assert info.result["result"] == "paid"
    else:
        assert (info.result["status"], info.result["error"]["type"]) == ("failed", "InDoubt")


async def test_whoever_did_not_begin_a_step_that_is_in_doubt_does_not_end_it(house: Any) -> None:
    """As a shell's step does that is ended by a signal while it asks."""
    lives, told = 0, list[Any]()

    def program() -> Steps:
        nonlocal lives
        lives += 1
        if lives > 1:
            told.append((yield Ask("step/end", {"result": "given up"}, at=0)))
        yield Ask("step", {"name": "pay", "on_doubt": "ask"}, at=0)
        if lives == 1:
            yield Ask("wait", {"kind": "signal", "name": "never"}, lane="other")
        ended = yield Ask("step/end", {"result": "paid"}, at=0)
        yield Ask("complete", {"result": ended.value}, at=1)

    run_id = await house.start(program)
    await house.waits(run_id, "signal")
    await house.kill_machine(run_id)
    await house.reaches(run_id, RunState.RECOVERING, RunState.STARTING)
    await house.waits(run_id, "doubt")
    assert [(said.status, said.value["error"]["code"]) for said in told] == [(409, "conflict")]
    await house.engine.approve(run_id, None, approved=True, by="ann")
    assert (await house.ends(run_id)).result == {"result": "paid"}


async def test_a_loss_that_is_seen_while_a_wait_ends_is_not_forgotten(house: Any) -> None:
    def program() -> Steps:
        yield Ask("wait", {"kind": "signal", "name": "a"})
        said = yield Ask("wait", {"kind": "signal", "name": "b"})
        yield Ask("complete", {"result": said.value["value"]})

    house.settings = dataclasses.replace(house.settings, idle_grace_s=1e6)
    await house.restart()
    run_id = await house.start(program)
    await house.waits(run_id, "signal")
    real = house.machines.inspect

    async def inspect(sandbox_id: str) -> Any:
        house.machines.inspect = real
        await house.engine.signal(run_id, "a", 1)  # between the look and what is made of it
        return await real(sandbox_id)

    house.machines.inspect = inspect
    await house.kill_machine(run_id)
    house.machines.sandboxes.clear()
    await house.engine.signal(run_id, "b", 2)
    info = await house.ends(run_id)
    assert (info.result, info.recoveries) == (2, 1)
