"""The clock that tests move, as whoever waits for it sees it; and the host's, by the same words."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from perdure.runs.clock import SYSTEM
from perdure.runs.timers import AGAIN_S, LOOK_S, Timers
from perdure.testing.clock import FakeClock
from perdure.testing.machines import Ask
from perdure.testing.programs import Steps

DAY_S = 86400.0


async def test_who_sleeps_goes_on_when_the_clock_was_moved_there() -> None:
    clock, woken = FakeClock(), list[str]()

    async def sleep(name: str, seconds: float) -> None:
        await clock.sleep_until(clock.monotonic() + seconds)
        woken.append(name)

    async with asyncio.timeout(10):
        first, second = asyncio.create_task(sleep("a", 10)), asyncio.create_task(sleep("b", DAY_S))
        await asyncio.sleep(0)
        clock.move(9)
        assert not first.done()
        clock.move(1)
        await first
        assert (woken, second.done()) == (["a"], False)
        clock.move(DAY_S)
        await second
        await clock.sleep_until(clock.monotonic())  # that has been
    assert (clock.monotonic(), woken) == (DAY_S + 10, ["a", "b"])


async def test_a_timeout_of_the_clock_ends_only_what_it_is_around() -> None:
    clock = FakeClock()
    async with asyncio.timeout(10):
        with pytest.raises(TimeoutError):
            async with clock.timeout_at(5):
                clock.move(5)
                await asyncio.Event().wait()
        async with clock.timeout_at(6), clock.timeout_at(None):
            pass
        clock.move(60)
        await asyncio.sleep(0)
    with pytest.raises(ValueError, match="does not go back"):
        clock.move(-1)


@pytest.mark.parametrize("way", ["time passes", "somebody sets the clock"])
async def test_timers_go_by_the_wall_clock(way: str) -> None:
    clock, fired = FakeClock(), asyncio.Queue[str]()

    async def fire(run_id: str, wait_id: str, until: float) -> None:
        fired.put_nowait(wait_id)

    timers = Timers(fire, clock)
    timers.add(clock.time() + DAY_S, "run", "later")
    timers.add(clock.time() + 60, "run", "sooner")
    running = asyncio.create_task(timers.run())
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        if way == "time passes":
            clock.move(60)
            assert await fired.get() == "sooner"
            clock.move(DAY_S)
        else:
            clock.set(clock.time() + DAY_S)
            clock.move(LOOK_S)  # it is not told, and looks again
            assert await fired.get() == "sooner"
        assert await fired.get() == "later"
    running.cancel()
    await asyncio.wait({running})


async def test_one_slow_deadline_holds_up_no_other() -> None:
    clock, fired, never, room = FakeClock(), asyncio.Queue[str](), asyncio.Event(), asyncio.Event()

    async def fire(run_id: str, name: str, until: float) -> None:
        if name == "slow":
            await never.wait()
        if name == "broken" and not room.is_set():
            raise OSError("the disk is full")
        fired.put_nowait(name)

    timers = Timers(fire, clock)
    for name in ("slow", "broken", "quick"):
        timers.add(clock.time() + 1, "run", name)
    running = asyncio.create_task(timers.run())
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        clock.move(1)
        assert await fired.get() == "quick"
        room.set()
        clock.move(AGAIN_S)
        assert await fired.get() == "broken"
    running.cancel()
    await asyncio.wait({running})


async def test_a_clock_that_is_set_back_makes_no_sleep_longer() -> None:
    clock, fired = FakeClock(), asyncio.Queue[str]()

    async def fire(run_id: str, name: str, until: float) -> None:
        fired.put_nowait(name)

    timers = Timers(fire, clock)
    timers.add(clock.time() + 3600, "run", "length")
    timers.add(clock.time() + 3000, "run", "moment", absolute=True)
    running = asyncio.create_task(timers.run())
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        clock.set(clock.time() - DAY_S)
        clock.move(3600)
        assert await fired.get() == "length"
        clock.move(DAY_S)
        assert await fired.get() == "moment"
    running.cancel()
    await asyncio.wait({running})


@pytest.mark.parametrize("limit_s", [None, 3600.0])
async def test_a_clock_that_is_set_back_makes_no_wait_and_no_limit_of_a_run_longer(
    house: Any, limit_s: float | None
) -> None:
    def program() -> Steps:
        yield Ask("wait", {"kind": "time", "seconds": 7200 if limit_s else 3600})
        yield Ask("complete", {"result": "slept"})

    house.settings = dataclasses.replace(house.settings, clean_up_s=0.0)
    clock = await house.at(FakeClock())
    run_id = await house.start(program, timeout_s=limit_s)
    await house.waits(run_id, "time")
    clock.set(clock.time() - DAY_S)
    clock.move(3600)
    info = await house.ends(run_id)
    assert info.result == (None if limit_s else "slept")
    assert info.state == ("failed" if limit_s else "completed")


async def test_a_deadline_that_is_given_twice_fires_once_and_a_newer_one_instead() -> None:
    clock, fired = FakeClock(), asyncio.Queue[str]()

    async def fire(run_id: str, name: str, until: float) -> None:
        fired.put_nowait(name)

    timers, now = Timers(fire, clock), clock.time()
    for until in (now + 5, now + 5, now + 9):
        timers.add(until, "run", "a")
    timers.add(now + 10, "run", "end")
    running = asyncio.create_task(timers.run())
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        clock.move(60)
        assert [await fired.get(), await fired.get()] == ["a", "end"]
    running.cancel()
    await asyncio.wait({running})


async def test_the_hosts_clock_by_the_same_words() -> None:
    async with asyncio.timeout(10):
        await SYSTEM.sleep_until(SYSTEM.monotonic() - 1)
        with pytest.raises(TimeoutError):
            async with SYSTEM.timeout_at(SYSTEM.monotonic()):
                await asyncio.Event().wait()


async def test_what_is_over_takes_no_room_and_does_not_fire() -> None:
    clock, fired = FakeClock(), asyncio.Queue[str]()

    async def fire(run_id: str, name: str, until: float) -> None:
        fired.put_nowait(name)

    timers, now = Timers(fire, clock), clock.time()
    timers.add(now + DAY_S, "", "schedule")
    timers.add(now + DAY_S, "kept", "wait")
    for number in range(10_000):  # runs that may take weeks, and end at once
        for name in ("limit", "wait"):
            timers.add(now + number + 60, f"run-{number}", f"{name}-{number}")
        timers.retain(f"run-{number}", [f"wait-{number}"])
        assert timers.of(f"run-{number}") == 1
        timers.forget(f"run-{number}")
    assert len(timers) == 2
    assert len(timers._heap) < 200
    timers.add(now + 60, "kept", "limit")
    running = asyncio.create_task(timers.run())
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        clock.move(DAY_S)
        assert [await fired.get() for _ in range(3)] == ["limit", "schedule", "wait"]
    assert (len(timers), fired.empty()) == (0, True)
    timers.add(clock.time() + 60, "kept", "limit")
    timers.add(clock.time() + 60, "", "queue")
    timers.let_go()
    assert (timers.of("kept"), len(timers)) == (0, 1)
    running.cancel()
    await asyncio.wait({running})
