"""Schedules start one run per due moment: on time, late, after restarts, by hand, and not while paused."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from perdure.errors import Conflict, InvalidValue, NoSpace, NotFound
from perdure.model import RunInfo, RunState
from perdure.runs.queues import Queue
from perdure.runs.record import StartRequest
from perdure.runs.schedules import Schedule
from perdure.testing.clock import FakeClock
from perdure.testing.house import AGENT
from perdure.testing.machines import Ask
from perdure.testing.programs import Steps


def quick() -> Steps:
    yield Ask("complete", {"result": 1})


def made(name: str = "s", request: StartRequest = AGENT, **fields: Any) -> Schedule:
    return Schedule(name=name, request=request, **{"every_s": 60.0, **fields})


async def started(house: Any, count: int) -> list[RunInfo]:
    """So many runs, the oldest first; none more were started by then."""
    async with asyncio.timeout(20):
        while len(runs := await house.engine.runs(tags={"schedule": "s"})) < count:
            await asyncio.wait({asyncio.create_task(asyncio.sleep(0.005))})
    for run in runs:
        await house.ends(run.id)
    assert len(runs) == count
    return runs[::-1]


async def idle(house: Any, done: float) -> None:
    """Until the schedule has done a moment."""
    async with asyncio.timeout(20):
        while (await house.engine.schedules.show("s"))["done"] < done:
            await asyncio.wait({asyncio.create_task(asyncio.sleep(0.005))})


async def test_each_moment_starts_one_run_also_over_restarts(house: Any) -> None:
    house.machines.program = quick
    clock = await house.at(FakeClock())
    began = clock.time()
    await house.engine.schedules.create(made(request=msgspec.structs.replace(AGENT, input={"a": 1})))
    assert await house.engine.runs() == []
    for number in range(1, 4):
        clock.move(60)
        runs = await started(house, number)
        await idle(house, began + number * 60)
        await house.restart()
    assert [run.metadata["moment"] - began for run in runs] == [60, 120, 180]
    assert all((run.input, run.tags) == ({"a": 1}, {"schedule": "s"}) for run in runs)
    assert (await house.engine.schedules.show("s"))["last_run"] == runs[-1].id


async def test_a_server_that_ends_before_it_has_written_what_it_started_starts_it_once(house: Any) -> None:
    house.machines.program = quick
    clock = await house.at(FakeClock())
    await house.engine.schedules.create(made())
    real, failed = house.log.keep, asyncio.Event()

    async def keep(*args: Any, **kwargs: Any) -> Any:
        failed.set()
        raise NoSpace("the disk is full")

    house.log.keep = keep
    clock.move(60)
    await asyncio.wait_for(failed.wait(), 20)
    house.log.keep = real
    await house.restart()
    await idle(house, clock.time())
    await started(house, 1)


@pytest.mark.parametrize(
    ("catch_up", "expected"),
    [
        ({"catch_up": "none"}, [600]),
        ({"catch_up": "last"}, [600]),
        ({"catch_up": "all", "catch_up_max": 3}, [480, 540, 600]),
    ],
)
async def test_missed_moments_are_caught_up_with_as_was_said(house: Any, catch_up: Any, expected: list[int]) -> None:
    house.machines.program = quick
    clock = await house.at(FakeClock())
    began = clock.time()
    await house.engine.schedules.create(made(**catch_up))
    await house.down()
    clock.move(630)
    await house.up()
    runs = await started(house, len(expected))
    assert [run.metadata["moment"] - began for run in runs] == expected


async def test_without_catching_up_what_is_late_is_gone(house: Any) -> None:
    house.machines.program = quick
    clock = await house.at(FakeClock())
    began = clock.time()
    await house.engine.schedules.create(made(every_s=3600, catch_up="none"))
    await house.down()
    clock.move(3600 + 61)
    await house.up()
    await idle(house, began + 3600)
    assert await house.engine.runs() == []
    clock.move(3600 - 61)
    assert (await started(house, 1))[0].metadata["moment"] - began == 7200


async def test_a_pause_is_not_caught_up_with(house: Any) -> None:
    house.machines.program = quick
    clock = await house.at(FakeClock())
    began = clock.time()
    await house.engine.schedules.create(made(catch_up="all"))
    assert (await house.engine.schedules.pause("s", True))["next"] == []
    clock.move(600)
    await house.restart()
    assert await house.engine.runs() == []
    shown = await house.engine.schedules.pause("s", False)
    assert [at - began for at in shown["next"][:2]] == [660, 720]
    clock.move(60)
    assert (await started(house, 1))[0].metadata["moment"] - began == 660


async def test_jitter_spreads_schedules_and_keeps_intervals(house: Any) -> None:
    offsets = {made(name=f"s{n}", jitter_s=100).offset_s for n in range(50)}
    assert len(offsets) == 50 and all(0 <= offset < 100 for offset in offsets)
    house.machines.program = quick
    clock = await house.at(FakeClock())
    shown = await house.engine.schedules.create(made(jitter_s=30))
    offset_s = made(jitter_s=30).offset_s
    assert shown["next"][0] == pytest.approx(clock.time() + 60 + offset_s)
    clock.move(60)
    await house.restart()
    assert await house.engine.runs() == []
    clock.move(offset_s + 0.001)
    await started(house, 1)


async def test_one_by_hand_and_a_start_that_is_refused(house: Any) -> None:
    house.machines.program = quick
    clock = await house.at(FakeClock())
    await house.engine.queues.create(Queue(name="q"))
    request = msgspec.structs.replace(AGENT, queue="q", metadata="mine")
    await house.engine.schedules.create(made(request=request))
    run_id = await house.engine.schedules.run("s")
    assert (await house.ends(run_id)).metadata == "mine"
    await house.engine.queues.remove("q")
    clock.move(60)
    await idle(house, clock.time())
    shown = await house.engine.schedules.show("s")
    assert (shown["error"]["code"], shown["last_run"]) == ("not-found", run_id)
    with pytest.raises(NotFound, match="no such queue: q"):
        await house.engine.schedules.run("s")
    await house.engine.queues.create(Queue(name="q"))
    clock.move(60)
    await started(house, 2)
    await idle(house, clock.time())
    assert (await house.engine.schedules.show("s"))["error"] is None


async def test_what_is_wrong_is_said(house: Any) -> None:
    schedules = house.engine.schedules
    for fields, words in (
        ({"name": "a/b"}, "not the name of a schedule"),
        ({"cron": "0 0 * * *"}, "either by cron or by every_s"),
        ({"every_s": None}, "either by cron or by every_s"),
        ({"every_s": None, "cron": "0 0 * * *", "zone": "Mars"}, "no such time zone: 'Mars'"),
        ({"every_s": 0.1}, "every_s is 0.1"),
        ({"jitter_s": -1.0}, "jitter_s is -1"),
        ({"catch_up_max": 0}, "catch_up_max is 0"),
        ({"request": msgspec.structs.replace(AGENT, key="k")}, "keys of its own"),
        ({"request": msgspec.structs.replace(AGENT, image="")}, "names no image"),
    ):
        with pytest.raises(InvalidValue, match=words):
            await schedules.create(made(**fields))
    assert await schedules.all() == []
    await schedules.create(made())
    with pytest.raises(Conflict, match="schedule s already"):
        await schedules.create(made())
    for act in (schedules.show, schedules.remove, schedules.run):
        with pytest.raises(NotFound, match="no such schedule: other"):
            await act("other")
    await schedules.remove("s")
    assert await schedules.all() == []
    assert RunState.QUEUED not in await house.engine.states()
