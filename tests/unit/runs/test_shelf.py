"""Runs that sleep are on the shelf: an id and a deadline. Whatever comes takes them down, once."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from perdure.errors import LeaseLost, Unavailable
from perdure.model import RunState
from perdure.testing.clock import FakeClock
from perdure.testing.machines import Ask
from perdure.testing.programs import Steps, approval


@pytest.fixture
async def shelving(house: Any) -> Any:
    """The house, where runs are put up as soon as they sleep."""
    await house.down()
    house.settings = dataclasses.replace(house.settings, shelve_after_s=0.0)
    await house.up()
    return house


async def shelved(house: Any, *run_ids: str) -> None:
    for _ in range(2000):
        if all(run_id in house.engine._shelf for run_id in run_ids):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("not on the shelf")


def asks() -> Steps:
    verdict = yield approval()
    yield Ask("complete", {"result": verdict.value["by"]})


async def test_an_answer_takes_a_run_down(shelving: Any) -> None:
    run_id = await shelving.start(asks)
    await shelved(shelving, run_id)
    assert shelving.engine._runs == {}
    assert (await shelving.engine.info(run_id)).state is RunState.SUSPENDED
    ending = asyncio.ensure_future(shelving.ends(run_id))
    await shelving.engine.approve(run_id, None, approved=True, by="ann")
    assert (await ending).result == "ann"
    assert shelving.machines.done == ["start", "suspend", "resume"]


async def test_many_that_want_a_run_at_once_take_it_down_once(shelving: Any) -> None:
    def program() -> Steps:
        said = yield Ask("wait/set", {"mode": "all", "waits": [{"kind": "signal", "name": str(i)} for i in range(20)]})
        yield Ask("complete", {"result": sorted(part["value"] for part in said.value["waits"])})

    run_id = await shelving.start(program)
    await shelved(shelving, run_id)
    await asyncio.gather(*(shelving.engine.signal(run_id, str(i), i) for i in range(20)))
    assert (await shelving.ends(run_id)).result == list(range(20))
    assert shelving.machines.done.count("resume") == 1


async def test_a_run_goes_back_when_what_came_was_nothing_to_wake_for(shelving: Any) -> None:
    run_id = await shelving.start(asks)
    await shelved(shelving, run_id)
    await shelving.engine.signal(run_id, "unknown", 1)
    await shelved(shelving, run_id)
    assert shelving.machines.done == ["start", "suspend"]
    await shelving.engine.cancel(run_id, clean_up_s=0)
    assert (await shelving.ends(run_id)).state is RunState.CANCELLED


async def test_a_server_puts_sleeping_runs_up_and_their_deadlines_wake_them(shelving: Any) -> None:
    clock = await shelving.at(FakeClock())

    def program() -> Steps:
        yield Ask("wait", {"kind": "time", "seconds": 3600})
        yield Ask("complete", {"result": 1})

    run_id = await shelving.start(program)
    await shelving.waits(run_id, "time")
    clock.move(3599)  # idle: it is suspended
    await shelving.reaches(run_id, RunState.SUSPENDED)
    await shelving.restart()
    assert run_id in shelving.engine._shelf
    clock.move(1)
    assert (await shelving.ends(run_id)).result == 1
    assert shelving.machines.done.count("resume") == 1


async def test_a_run_whose_log_cannot_be_read_now_stays_up(shelving: Any) -> None:
    run_id = await shelving.start(asks)
    await shelved(shelving, run_id)
    real = shelving.log.head

    async def away(run_id: str) -> Any:
        raise Unavailable("the database is away")

    shelving.log.head = away
    with pytest.raises(Unavailable):
        await shelving.engine.signal(run_id, "a", 1)
    shelving.log.head = real
    await shelving.engine.approve(run_id, None, approved=True, by="ann")
    assert (await shelving.ends(run_id)).result == "ann"


async def test_parents_and_children_sleep_too(shelving: Any) -> None:
    def program() -> Steps:
        begun = yield Ask("begin", {})
        if begun.value["agent"].endswith(":main"):
            said = yield Ask("wait", {"kind": "child", "function": "kid"})
            yield Ask("complete", {"result": said.value["result"]})
        verdict = yield approval()
        yield Ask("complete", {"result": verdict.value.get("by")})

    run_id = await shelving.start(program)
    await shelved(shelving, run_id)
    (kid,) = (await shelving.engine.info(run_id)).children
    await shelved(shelving, kid)
    await shelving.restart()
    await shelving.engine.approve(kid, None, approved=True, by="ann")
    assert (await shelving.ends(run_id)).result == "ann"


async def test_who_wants_a_run_that_is_let_go_meanwhile_is_told_so_and_not_broken_off(shelving: Any) -> None:
    run_id = await shelving.start(asks)
    await shelved(shelving, run_id)
    real, reached = shelving.log.head, asyncio.Event()

    async def head(asked: str) -> Any:
        reached.set()
        await asyncio.Event().wait()  # the database is slow

    shelving.log.head = head
    signalling = asyncio.ensure_future(shelving.engine.signal(run_id, "x", None))
    await reached.wait()
    await shelving.engine._shelf.let_go()
    shelving.log.head = real
    with pytest.raises(LeaseLost):
        await signalling
