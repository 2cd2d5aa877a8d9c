"""How long a run's machine was off, what for, and what that saved: it is counted with its states."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure.cli.perdure import _words
from perdure.model import RunInfo, RunState
from perdure.runs.policy import Policy
from perdure.testing.clock import FakeClock
from perdure.testing.house import until
from perdure.testing.machines import Ask
from perdure.testing.programs import Steps, chat

AT_ONCE = Policy(idle_grace_s=0, think_grace_s=5)


def program() -> Steps:
    yield chat("a long question")
    yield Ask("wait", {"kind": "signal", "name": "go"})
    yield Ask("complete", {"result": 1})


def slept(info: RunInfo) -> tuple[int, int]:
    """Whole seconds: in all, and while a model thought. A machine of a test sleeps for no time of its own."""
    return int(info.suspended_s), int(info.suspended_thinking_s)


async def test_what_a_run_slept_over_is_told_also_after_a_restart(house: Any, provider: Any) -> None:
    clock = await house.at(FakeClock())
    provider.silence = asyncio.Event()
    run_id = await house.start(program, policy=AT_ONCE, memory_mib=2048)
    await until(lambda: provider.requests)
    clock.move(6)  # the model thinks
    await house.reaches(run_id, RunState.SUSPENDED)
    clock.move(100)
    provider.silence.set()
    assert await house.engine._runs[run_id].until(lambda: house.machines.done.count("suspend") == 2, 20)
    await house.reaches(run_id, RunState.SUSPENDED)
    clock.move(30)
    await house.restart()
    clock.move(20)
    await house.engine.signal(run_id, "go", None)
    ended = await house.ends(run_id)
    assert (slept(ended), ended.suspends) == ((150, 100), 2)
    assert ended.spared_memory_gib_s == pytest.approx(2 * ended.suspended_s)
    assert 150 < ended.wall_s < 180
    clock.move(1000)
    await house.restart()
    assert await house.engine.info(run_id) == ended  # an end stays as it was
    told = _words.asleep(ended)
    assert told.startswith("1m 40s while a model thought, ") and "while it waited" in told
    assert "% of its time; 300 GiB·s of memory not held" in told


async def test_a_sleep_that_ends_with_its_run_counts_and_one_that_goes_on_is_told(house: Any) -> None:
    clock = await house.at(FakeClock())

    def waits() -> Steps:
        yield Ask("wait", {"kind": "signal", "name": "go"})

    run_id = await house.start(waits, policy=AT_ONCE)
    info = await house.reaches(run_id, RunState.SUSPENDED)
    assert info.suspended_thinking_s == 0 and info.suspended_s < 20
    clock.move(70)
    await house.engine.cancel(run_id, clean_up_s=0)
    clock.move(5)
    ended = await house.ends(run_id)
    assert (slept(ended)[0] // 10, ended.suspended_thinking_s) == (7, 0)
    assert "of memory not held" in _words.asleep(ended) and "thought" not in _words.asleep(ended)


async def test_a_rewind_from_a_sleep_and_from_the_end_forgets_nothing(house: Any) -> None:
    clock = await house.at(FakeClock())

    def waits() -> Steps:
        yield Ask("emit", {"name": "a", "value": 1})
        yield Ask("wait", {"kind": "signal", "name": "go"})
        yield Ask("complete", {"result": 1})

    run_id = await house.start(waits, policy=AT_ONCE)
    await house.reaches(run_id, RunState.SUSPENDED)
    clock.move(40)
    (emitted,) = await house.entries(run_id, "emit")
    await house.engine.rewind(run_id, emitted.seq)
    assert await house.engine._runs[run_id].until(lambda: house.machines.done.count("suspend") == 2, 20)
    await house.reaches(run_id, RunState.SUSPENDED)
    await house.engine.signal(run_id, "go", None)
    ended = await house.ends(run_id)
    assert slept(ended)[0] == 40 and ended.wall_s > 39
    await house.engine.rewind(run_id, emitted.seq)
    again = await house.reaches(run_id, RunState.SUSPENDED)
    assert again.suspended_s >= ended.suspended_s
    await house.engine.cancel(run_id)


def test_nothing_is_told_of_a_run_that_never_slept() -> None:
    assert _words.asleep(RunInfo(id="r", state=RunState.RUNNING, agent="a", created=0.0, wall_s=9.0)) == ""
