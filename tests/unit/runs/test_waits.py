"""What runs are parked on: approvals, signals and time; each answered once, withdrawn or timed out."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure.errors import Conflict, NoSpace, NotFound
from perdure.model import RunState
from perdure.testing.clock import FakeClock
from perdure.testing.machines import Ask
from perdure.testing.programs import Steps, approval

DAY_S = 86400.0


async def test_a_wait_suspends_and_its_approval_resumes_once(house: Any) -> None:
    def program() -> Steps:
        yield Ask("begin", {})
        verdict = yield approval(show={"draft": "x"})
        yield Ask("complete", {"result": verdict.value})

    run_id = await house.start(program)
    info = await house.reaches(run_id, RunState.SUSPENDED)
    assert info.waits[0]["show"] == {"draft": "x"}
    assert info.snapshot.position.branch == 1
    wait = await house.engine.approve(run_id, None, approved=True, comment="fine", by="ann")
    assert wait["name"] == "Publish?"
    info = await house.ends(run_id)
    assert info.result["approved"] is True
    assert (info.result["comment"], info.result["by"], info.result["timed_out"]) == ("fine", "ann", False)
    assert house.machines.done == ["start", "suspend", "resume"]
    assert info.epoch == 2
    kinds = [entry.kind for entry in await house.entries(run_id)]
    assert kinds.count("wait.started") == kinds.count("wait.completed") == kinds.count("run.resuming") == 1
    position = info.snapshot.position
    assert (await house.entries(run_id))[position.seq - 1].kind == "run.suspending"


async def test_only_the_first_approval_counts(house: Any) -> None:
    def program() -> Steps:
        verdict = yield approval()
        yield Ask("complete", {"result": verdict.value["by"]})

    run_id = await house.start(program)
    await house.reaches(run_id, RunState.SUSPENDED)
    wait_id = (await house.engine.info(run_id)).waits[0]["id"]
    results = await asyncio.gather(
        *(house.engine.approve(run_id, wait_id, approved=True, by=f"person{i}") for i in range(5)),
        return_exceptions=True,
    )
    won = [result for result in results if isinstance(result, dict)]
    lost = [result for result in results if isinstance(result, Conflict)]
    assert (len(won), len(lost)) == (1, 4)
    first = (await house.ends(run_id)).result
    assert all(error.details["by"] == first and first in error.message for error in lost)
    with pytest.raises(Conflict, match="answered already: approved by") as late:
        await house.engine.approve(run_id, None, approved=False)
    assert late.value.details["wait"] == wait_id
    assert late.value.details["at"] > 0


async def test_an_approval_of_a_run_that_does_not_wait_is_refused(house: Any) -> None:
    def program() -> Steps:
        yield Ask("wait", {"kind": "signal", "name": "go"})
        yield Ask("complete", {"result": 1})

    run_id = await house.start(program)
    await house.reaches(run_id, RunState.WAITING, RunState.SUSPENDED)
    with pytest.raises(Conflict, match="does not wait for an approval") as refused:
        await house.engine.approve(run_id, None, approved=True)
    assert refused.value.hint
    with pytest.raises(Conflict, match="wait abc is not open"):
        await house.engine.approve(run_id, "abc", approved=True)
    with pytest.raises(NotFound, match="no such run: nobody"):
        await house.engine.find("nobody")
    await house.engine.signal(run_id, "go", None)
    await house.ends(run_id)
    with pytest.raises(Conflict, match="has ended: it is completed"):
        await house.engine.signal(run_id, "go", None)
    with pytest.raises(Conflict, match="has ended"):
        await house.engine.cancel(run_id)


async def test_signals_before_the_wait_are_kept_in_order(house: Any) -> None:
    def program() -> Steps:
        yield Ask("wait", {"kind": "signal", "name": "start"})
        one = yield Ask("wait", {"kind": "signal", "name": "data"})
        two = yield Ask("wait", {"kind": "signal", "name": "data"})
        yield Ask("complete", {"result": [one.value["value"], two.value["value"]]})

    run_id = await house.start(program)
    await house.reaches(run_id, RunState.WAITING, RunState.SUSPENDED)
    (wait,) = (await house.engine.info(run_id)).waits
    for value in (1, 2):
        assert await house.engine.signal(run_id, "data", value, f"d{value}") == ("kept", "")
    assert await house.engine.signal(run_id, "data", 3, "d1") == ("duplicate", "")
    assert (await house.engine.info(run_id)).state is not RunState.COMPLETED
    assert await house.engine.signal(run_id, "start", None) == ("taken", wait["id"])
    assert (await house.ends(run_id)).result == [1, 2]


async def test_timers_and_timeouts(house: Any) -> None:
    clock = await house.at(FakeClock())

    def program() -> Steps:
        yield Ask("wait", {"kind": "time", "seconds": 3 * DAY_S})
        late = yield Ask("wait", {"kind": "signal", "name": "never", "timeout_s": 3600})
        verdict = yield approval(timeout_s=7 * DAY_S)
        yield Ask(
            "complete", {"result": [late.value["timed_out"], verdict.value["approved"], verdict.value["timed_out"]]}
        )

    run_id = await house.start(program)
    for kind, seconds in (("time", 3 * DAY_S), ("signal", 3600), ("approval", 7 * DAY_S)):
        await house.waits(run_id, kind)
        clock.move(seconds - 1)  # idle: it is suspended
        info = await house.reaches(run_id, RunState.SUSPENDED)
        assert [wait["kind"] for wait in info.waits] == [kind]
        clock.move(1)
    assert (await house.ends(run_id)).result == [True, False, True]
    with pytest.raises(Conflict, match="timed out at"):
        await house.engine.approve(run_id, None, approved=True)


async def test_a_deadline_that_cannot_be_written_passes_later(house: Any) -> None:
    clock = await house.at(FakeClock())
    real, failed = house.log.append, 0

    async def append(*args: Any, **kwargs: Any) -> Any:
        nonlocal failed
        if any(entry.kind == "wait.completed" for entry in args[1]) and failed < 2:
            failed += 1
            raise NoSpace("the disk is full")
        return await real(*args, **kwargs)

    def program() -> Steps:
        yield Ask("wait", {"kind": "time", "seconds": DAY_S})
        yield Ask("complete", {"result": 1})

    house.log.append = append
    run_id = await house.start(program)
    await house.waits(run_id, "time")
    clock.move(DAY_S)
    ends = asyncio.create_task(house.ends(run_id))
    while not ends.done():
        await asyncio.sleep(0)
        clock.move(0.1)  # it is tried again after a while
    assert (await ends).result == 1
    assert failed == 2


async def test_two_waits_at_once_suspend_together_and_end_one_by_one(house: Any) -> None:
    def program() -> Steps:
        both = yield [
            Ask("wait", {"kind": "signal", "name": "a"}, lane="main.1"),
            Ask("wait", {"kind": "signal", "name": "b"}, lane="main.2"),
        ]
        yield Ask("complete", {"result": [said.value["value"] for said in both]})

    run_id = await house.start(program)
    await house.reaches(run_id, RunState.SUSPENDED)
    await house.engine.signal(run_id, "b", 2)
    # it goes on and sleeps again: nobody can count on seeing it awake
    assert await house.engine._runs[run_id].until(lambda: house.machines.done.count("suspend") == 2, 20)
    info = await house.reaches(run_id, RunState.SUSPENDED)
    assert [wait["name"] for wait in info.waits] == ["a"]
    await house.engine.signal(run_id, "a", 1)
    assert (await house.ends(run_id)).result == [1, 2]


async def test_a_wait_that_its_program_withdraws_is_over(house: Any) -> None:
    life = 1
    go = asyncio.Event()

    def program() -> Steps:
        early = yield Ask("wait/withdraw", {}, at=7)  # a call may overtake the one before it
        late = yield Ask("wait", {"kind": "signal", "name": "never"}, at=7)
        both = yield [Ask("wait", {"kind": "approval", "prompt": "Sure?"}, at=8), Ask("wait/withdraw", {}, at=8)]
        if life == 1:
            go.set()
            yield Ask("wait", {"kind": "signal", "name": "lost"}, at=9)
        yield Ask("complete", {"result": [early.value, late.value, both[0].value]}, at=10)

    run_id = await house.start(program)
    await asyncio.wait_for(go.wait(), 10)
    await house.reaches(run_id, RunState.SUSPENDED)
    info = await house.engine.info(run_id)
    assert [wait["name"] for wait in info.waits] == ["lost"]
    with pytest.raises(Conflict, match="stopped waiting for the approval"):
        await house.engine.approve(run_id, None, approved=True)
    house.machines.sandboxes.clear()  # also what it was captured as: it lives through all of it again
    life = 2
    await house.engine.signal(run_id, "lost", None)
    gone = {"kind": "signal", "withdrawn": True}
    assert (await house.ends(run_id)).result == [{}, gone, {"kind": "approval", "withdrawn": True}]
    assert len([e for e in await house.entries(run_id, "wait.completed") if e.payload["outcome"] == "withdrawn"]) == 2
