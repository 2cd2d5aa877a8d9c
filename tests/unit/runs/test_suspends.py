"""Suspends in their races: with an approval, a failure, a lost answer, a step, and somebody else."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure.errors import IllegalTransition, MachineFailed, Unavailable
from perdure.model import LogPosition, RunState
from perdure.testing.machines import Ask
from perdure.testing.programs import Steps, approval


@pytest.mark.parametrize("moment", ["held", "failed", "after"])
async def test_a_wait_that_completes_during_a_suspend_resumes_once(house: Any, moment: str) -> None:
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        reached.set()
        await go_on.wait()
        if moment == "failed":
            raise MachineFailed("the capture failed")

    house.machines.before["suspend"] = hold

    def program() -> Steps:
        verdict = yield approval()
        yield Ask("emit", {"name": "told"})
        yield Ask("complete", {"result": verdict.value["by"]})

    run_id = await house.start(program)
    await asyncio.wait_for(reached.wait(), 10)
    if moment != "after":
        await house.engine.approve(run_id, None, approved=True, by="ann")
    assert not await house.entries(run_id, "emit")  # nothing is answered while the machine is being captured
    go_on.set()
    if moment == "after":
        await house.reaches(run_id, RunState.SUSPENDED)
        await house.engine.approve(run_id, None, approved=True, by="ann")
    info = await house.ends(run_id)
    assert info.result == "ann"
    assert len(await house.entries(run_id, "wait.completed")) == len(await house.entries(run_id, "emit")) == 1
    assert house.machines.done.count("resume") == (0 if moment == "failed" else 1)
    assert info.recoveries == 0


async def test_a_refused_suspend_leaves_it_warm_and_is_tried_again(house: Any) -> None:
    tries = 0

    async def refuse_once() -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise MachineFailed("no space in the store")

    house.machines.before["suspend"] = refuse_once

    def program() -> Steps:
        yield approval()
        yield Ask("complete", {"result": 1})

    run_id = await house.start(program)
    await house.reaches(run_id, RunState.SUSPENDED)
    assert tries == 2
    failed = [
        e.payload["suspend_failed"] for e in await house.entries(run_id, "run.waiting") if "suspend_failed" in e.payload
    ]
    assert failed[0]["message"] == "no space in the store"
    await house.engine.approve(run_id, None, approved=True)
    assert (await house.ends(run_id)).state is RunState.COMPLETED


@pytest.mark.parametrize("lost", ["the node's answer", "the server"])
async def test_a_suspend_that_nobody_heard_of_is_found_and_its_approval_resumes(house: Any, lost: str) -> None:
    """The node suspends the machine, its answer is lost, and the approval comes in between."""
    real, captured, approved = house.machines.suspend, asyncio.Event(), asyncio.Event()

    async def suspend(sandbox_id: str, position: Any) -> Any:
        if captured.is_set():
            raise IllegalTransition("it is suspended already")
        await real(sandbox_id, position)
        captured.set()
        await approved.wait()
        raise Unavailable("the node went away")

    house.machines.suspend = suspend

    def program() -> Steps:
        verdict = yield approval()
        yield Ask("complete", {"result": verdict.value["by"]})

    run_id = await house.start(program)
    await asyncio.wait_for(captured.wait(), 10)
    if lost == "the server":
        await house.down()
        await house.up()
    await house.engine.approve(run_id, None, approved=True, by="ann")
    approved.set()
    info = await house.ends(run_id)
    assert (info.result, info.recoveries) == ("ann", 0)
    assert house.machines.done.count("resume") == 1


async def test_a_sandbox_that_somebody_else_suspends_goes_on(house: Any) -> None:
    def program() -> Steps:
        verdict = yield approval()
        yield Ask("complete", {"result": verdict.value["by"]})

    begun = asyncio.Event()

    async def never() -> None:
        begun.set()
        await asyncio.Event().wait()

    house.machines.before["suspend"] = never  # the engine's own never comes through
    run_id = await house.start(program)
    async with asyncio.timeout(20):
        await begun.wait()
    assert (await house.engine.info(run_id)).state is RunState.SUSPENDING
    del house.machines.before["suspend"]
    sandbox_id = (await house.engine.info(run_id)).sandbox_id
    await house.machines.suspend(sandbox_id, LogPosition(run_id="another", branch=0, seq=0, epoch=0))
    await house.down()
    await house.up()
    await house.engine.approve(run_id, None, approved=True, by="ann")
    assert (await house.ends(run_id)).result == "ann"


async def test_a_machine_is_not_captured_within_a_step(house: Any) -> None:
    """Its effect would come again with the snapshot, and nobody would have been asked."""

    def program() -> Steps:
        yield Ask("step", {"name": "pay", "on_doubt": "ask"}, at=0)
        yield Ask("wait", {"kind": "approval", "prompt": "Meanwhile?"}, lane="other")
        yield Ask("step/end", {"result": "paid"}, at=0)
        yield approval("And now?")
        yield Ask("complete", {"result": 1})

    run_id = await house.start(program)
    await house.reaches(run_id, RunState.WAITING)
    for _ in range(2):  # the next server knows it from the log
        run = house.engine._runs[run_id]
        assert await run.until(lambda run=run: bool(run._asking), 10)
        assert not run.idle()
        await house.down()
        await house.up()
    assert house.machines.done == ["start"]
    await house.engine.approve(run_id, None, approved=True)
    await house.reaches(run_id, RunState.SUSPENDED)
    assert [wait["name"] for wait in (await house.engine.info(run_id)).waits] == ["And now?"]
    await house.engine.approve(run_id, None, approved=True)
    await house.ends(run_id)
