"""How long a run may take: wall time, and the time with a machine."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import msgspec
import pytest

from perdure.errors import InvalidValue
from perdure.model import RunState
from perdure.runs import limits
from perdure.runs.record import Record
from perdure.testing.clock import FakeClock
from perdure.testing.house import AGENT, QUICK, nothing
from perdure.testing.machines import Ask
from perdure.testing.programs import Steps, approval

DAY_S = 86400.0
AT_ONCE = dataclasses.replace(QUICK, idle_grace_s=0)


def sleeps() -> Steps:
    answer = yield approval()
    yield Ask("emit", {"name": "cleaned", "value": answer.value})
    yield Ask("complete", {"result": 1})


@pytest.mark.parametrize("field", ["timeout_s", "active_timeout_s"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), 1e11])
async def test_a_limit_is_a_number_of_seconds(house: Any, field: str, value: float) -> None:
    with pytest.raises(InvalidValue, match=field):
        await house.start(nothing, **{field: value})


async def test_wall_time_passes_while_a_run_sleeps_and_while_no_server_runs(house: Any) -> None:
    house.settings = AT_ONCE
    clock = await house.at(FakeClock())
    run_id = await house.start(sleeps, timeout_s=60, active_timeout_s=10)
    await house.reaches(run_id, RunState.SUSPENDED)
    clock.move(50)
    await house.restart()
    assert (await house.engine.info(run_id)).state is RunState.SUSPENDED
    clock.move(11)
    info = await house.ends(run_id)
    assert (info.state, info.error["code"]) == (RunState.FAILED, "timed-out")
    assert "within 60 s of wall time" in info.error["message"] and "--timeout" in info.error["hint"]
    # its program was told, where it waited, and cleaned up
    told = (await house.entries(run_id, "emit"))[0].payload["value"]
    assert told["error"]["code"] == "cancelled" and "60 s" in told["error"]["message"]


async def test_only_the_time_with_a_machine_is_active(house: Any) -> None:
    house.settings = AT_ONCE
    clock = await house.at(FakeClock())
    gone = asyncio.Event()

    def program() -> Steps:
        yield Ask("wait", {"kind": "signal", "name": "one"})
        yield Ask("wait", {"kind": "signal", "name": "two"})
        yield Ask("complete", {"result": 1})

    async def hold() -> None:
        clock.move(4)  # what each start and restore takes
        gone.set()

    house.machines.before = {"start": hold, "resume": hold}
    run_id = await house.start(program, active_timeout_s=10)
    await house.reaches(run_id, RunState.SUSPENDED)
    clock.move(1000)
    await house.restart()
    await house.engine.signal(run_id, "one", None)
    assert await house.engine._runs[run_id].until(lambda: house.machines.done.count("suspend") == 2, 20)
    await house.reaches(run_id, RunState.SUSPENDED)
    record = house.engine._runs[run_id].record
    assert (record.active_s, record.active_since) == (8.0, 0.0)
    clock.move(1000)
    await house.engine.signal(run_id, "two", None)  # 4 s more
    info = await house.ends(run_id)
    assert info.state is RunState.COMPLETED or info.error["code"] == "timed-out"
    assert house.engine._runs.get(run_id) is None or limits.deadline(record) is None


async def test_a_run_that_computes_too_long_is_ended_after_its_time_to_clean_up(house: Any) -> None:
    clock = await house.at(FakeClock())
    never = asyncio.Event()

    async def hold() -> None:
        await never.wait()

    def program() -> Steps:
        yield Ask("begin", {})
        yield Ask("wait", {"kind": "signal", "name": "x", "timeout_s": 1e9})
        yield Ask("wait", {"kind": "signal", "name": "deaf to what it was told"})

    run_id = await house.start(program, active_timeout_s=5)
    await house.reaches(run_id, RunState.WAITING)
    clock.move(5)
    run = house.engine._runs[run_id]
    assert await run.until(lambda: run.record.ending is not None and run.record.waits.open, 20)
    assert not run.idle()  # it is not put to sleep any more
    clock.move(house.settings.clean_up_s)
    info = await house.ends(run_id)
    assert (info.state, info.error["details"]) == (RunState.FAILED, {"limit": "active_timeout_s"})
    await house.released(run_id)
    assert house.machines.sandboxes == {}


def test_times_of_a_record() -> None:
    record = Record(state=RunState.QUEUED, request=msgspec.structs.replace(AGENT, timeout_s=60, active_timeout_s=10))
    at = 100.0

    def go(to: RunState) -> None:
        nonlocal record
        record = msgspec.structs.replace(record, **limits.clocked(record, to, at), state=to)

    assert limits.deadline(record) is None
    go(RunState.STARTING)
    assert limits.deadline(record) == 110
    at = 104.0
    for state in (RunState.RUNNING, RunState.WAITING, RunState.SUSPENDING):
        go(state)
        assert limits.deadline(record) == 110
    go(RunState.SUSPENDED)
    assert limits.deadline(record) == 160
    at = 150.0
    go(RunState.RESUMING)
    assert limits.deadline(record) == 156
    at = 90.0  # the clock was set back
    go(RunState.RECOVERING)
    assert (record.active_s, limits.deadline(record)) == (4.0, 160)
    assert limits.passed(record, 159) is None
    error = limits.passed(record, 160)
    assert error is not None and error["details"] == {"limit": "timeout_s"}


async def test_the_deadlines_of_a_run_that_ended_or_of_waits_that_are_over_are_forgotten(house: Any) -> None:
    def program() -> Steps:
        for number in range(50):
            yield Ask("wait", {"kind": "signal", "name": f"s{number}", "timeout_s": 14 * DAY_S})
        yield approval(timeout_s=14 * DAY_S)
        yield Ask("complete", {"result": 1})

    timers = house.engine._timers
    before = len(timers)
    run_id = await house.start(program, timeout_s=30 * DAY_S)
    for number in range(50):
        await house.engine.signal(run_id, f"s{number}", None)
    await house.waits(run_id, "approval")
    assert 2 <= timers.of(run_id) < 25
    await house.engine.approve(run_id, None, approved=True)
    await house.ends(run_id)
    assert len(timers) == before
    other = await house.start(sleeps, timeout_s=30 * DAY_S)
    await house.waits(other, "approval")
    await house.engine.cancel(other, clean_up_s=0)
    await house.ends(other)
    assert len(timers) == before
