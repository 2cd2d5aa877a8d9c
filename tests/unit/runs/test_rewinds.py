"""A run that goes back to an entry of its log, from whatever state, and on from there."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure.errors import Conflict, InvalidValue
from perdure.model import Retry, RunState
from perdure.testing.clock import FakeClock
from perdure.testing.machines import Ask, Effect
from perdure.testing.programs import Steps, approval, chat


def decision() -> Steps:
    verdict = yield approval("Publish?")
    turn = yield chat(f"finish: {verdict.value['comment']}")
    text = turn.value["choices"][0]["message"]["content"]
    if verdict.value["comment"] == "break":
        yield Ask("fail", {"error": {"message": "broken"}})
    yield Ask("complete", {"result": [text, verdict.value["by"]]})


async def before_the_answer(house: Any, run_id: str) -> int:
    return (await house.entries(run_id, "wait.completed"))[0].seq - 1


async def taken_to(house: Any, run_id: str) -> tuple[str, str]:
    """The state that its last rewind took it to, and why, as its log has it: it may be further on by now."""
    entries = await house.entries(run_id)
    after = entries[max(number for number, entry in enumerate(entries) if entry.kind == "rewound") + 1]
    return after.kind, after.payload["cause"]


@pytest.mark.parametrize("end", ["completed", "failed", "cancelled"])
async def test_an_ended_run_goes_back_and_ends_another_way(house: Any, provider: Any, end: str) -> None:
    run_id = await house.start(decision)
    await house.reaches(run_id, RunState.SUSPENDED)
    if end == "cancelled":
        at = (await house.engine.info(run_id)).seq
        await house.engine.cancel(run_id, "not now", clean_up_s=0)
    else:
        await house.engine.approve(run_id, None, approved=True, comment="break" if end == "failed" else "one")
    first = await house.ends(run_id)
    assert first.state == end
    await house.released(run_id)
    at = at if end == "cancelled" else await before_the_answer(house, run_id)
    info = await house.engine.rewind(run_id, at)
    assert (info.result, info.error) == (None, None)
    assert await taken_to(house, run_id) == ("run.recovering", "rewind")
    await house.reaches(run_id, RunState.SUSPENDED)
    await house.engine.approve(run_id, None, approved=True, comment="two", by="ann")
    info = await house.ends(run_id)
    assert (info.state, info.result, info.branch) == (RunState.COMPLETED, ["answer to finish: two", "ann"], 2)
    old = await house.context.read(run_id, branch=1)
    assert (old[-1].kind, old[-1].seq) == (f"run.{end}", first.seq)  # still readable
    (rewound,) = await house.entries(run_id, "rewound")
    assert (rewound.payload["from_branch"], rewound.payload["from"], rewound.payload["at"]) == (1, first.seq, at)
    assert rewound.payload["state"] == end
    await house.context.verify(run_id)
    await house.released(run_id)


async def test_a_rewind_with_a_key_is_done_once(house: Any) -> None:
    run_id = await house.start(decision)
    at = (await house.reaches(run_id, RunState.SUSPENDED)).seq
    assert (await house.engine.rewind(run_id, at, key="back")).branch == 2
    both = await asyncio.gather(*(house.engine.rewind(run_id, at, key="back") for _ in range(2)))
    assert [info.branch for info in both] == [2, 2]
    assert (await house.engine.rewind(run_id, at, key="again")).branch == 3
    await house.restart()
    assert (await house.engine.rewind(run_id, at, key="back")).branch == 3  # it was done, on a branch that was left
    with pytest.raises(Conflict, match=f"the key 'back' is that of a rewind to entry {at}"):
        await house.engine.rewind(run_id, at - 1, key="back")
    await house.reaches(run_id, RunState.SUSPENDED)
    await house.engine.approve(run_id, None, approved=True, comment="x")
    await house.ends(run_id)
    assert (await house.engine.rewind(run_id, at, key="back")).state is RunState.COMPLETED


@pytest.mark.parametrize("way", ["diverges", "fails", "is tried again"])
async def test_a_key_is_of_the_run_that_went_back_whatever_becomes_of_it(house: Any, way: str) -> None:
    life, failures, done = 1, 0, list[str]()

    def program() -> Steps:
        nonlocal failures
        if way == "diverges":
            yield chat(f"life {life}")
        asked = yield Ask("step", {"name": "try", "on_doubt": "retry"}, lane="other", at=0)
        if asked.value["status"] == "run":
            yield Effect(lambda: done.append("try"))
            yield Ask("step/end", {"error": {"type": "OSError", "message": "no"}}, lane="other", at=0)
        verdict = yield Ask("wait", {"kind": "approval", "prompt": "Publish?"}, lane="third", at=0)
        if failures:
            failures -= 1
            yield Ask("fail", {"error": {"code": "agent-failed", "message": "broken"}})
        yield Ask("complete", {"result": verdict.value["comment"]})

    async def goes_on(run_id: str) -> int:
        """That way; the entry that it waits at then."""
        nonlocal life, failures
        if way == "diverges":
            house.machines.sandboxes.clear()
            life += 1
        else:
            failures = 1
        await house.engine.approve(run_id, None, approved=True, comment="fine")
        info = await house.ends(run_id)
        assert (info.result, info.attempt) == ((None, 1) if way == "fails" else ("fine", 1 + (way == "is tried again")))
        assert bool(await house.entries(run_id, "diverged")) == (way == "diverges")
        return [entry.seq for entry in await house.entries(run_id, "wait.started")][-1]

    retry = {"any": Retry(attempts=2, delay_s=0)} if way == "is tried again" else {}
    run_id = await house.start(program, retry=retry)
    at = (await house.reaches(run_id, RunState.SUSPENDED)).seq
    await house.engine.rewind(run_id, at, key="back")
    await house.reaches(run_id, RunState.SUSPENDED)
    (fork,), _ = await house.engine.fork_once(run_id, key="one")
    for one in (run_id, fork.id):
        if one == fork.id:
            await house.reaches(one, RunState.SUSPENDED)
        to = await goes_on(one)
        before, asked = await house.entries(one), list(done)
        if one == run_id:
            info = await house.engine.rewind(one, at, key="back")
            assert info.branch == before[-1].branch and await house.entries(one) == before
            (again,), is_new = await house.engine.fork_once(one, key="one")
            assert (again.id, is_new) == (fork.id, False)
            assert await house.entries(one) == before and done == asked
        else:  # it never went back: the key was that of the run which it is a fork of
            info = await house.engine.rewind(one, to, key="back")
            assert info.branch == before[-1].branch + 1
            assert await taken_to(house, one) == ("run.recovering", "rewind")
            assert (await house.engine.rewind(one, to, key="back")).branch == info.branch
        await house.context.verify(one)


async def test_a_suspended_run_goes_back_to_its_first_snapshot(house: Any, provider: Any) -> None:
    def program() -> Steps:
        first = yield approval("One?")
        turn = yield chat(first.value["comment"])
        second = yield approval("Two?")
        text = turn.value["choices"][0]["message"]["content"]
        yield Ask("complete", {"result": [text, second.value["comment"]]})

    run_id = await house.start(program)
    at = (await house.reaches(run_id, RunState.SUSPENDED)).seq
    await house.engine.approve(run_id, None, approved=True, comment="a")
    run = house.engine._runs[run_id]
    assert await run.until(lambda: any(wait.name == "Two?" for wait in run.record.waits.open), 10)
    await house.reaches(run_id, RunState.SUSPENDED)
    snapshots = [entry.payload["snapshot"]["digest"] for entry in await house.entries(run_id, "snapshot")]
    info = await house.engine.rewind(run_id, at)
    assert [wait["name"] for wait in info.waits] == ["One?"]
    await house.reaches(run_id, RunState.SUSPENDED)
    running = (await house.entries(run_id, "run.running"))[-1]
    assert running.payload["from"] == snapshots[0]
    await house.engine.approve(run_id, None, approved=True, comment="b")
    assert await run.until(lambda: any(wait.name == "Two?" for wait in run.record.waits.open), 10)
    await house.engine.approve(run_id, None, approved=True, comment="c")
    assert (await house.ends(run_id)).result == ["answer to b", "c"]
    assert house.machines.done.count("start") == 1
    assert provider.requests == 2


async def test_signals_are_what_they_were(house: Any) -> None:
    def program() -> Steps:
        yield approval("Ready?")
        data = yield Ask("wait", {"kind": "signal", "name": "data"})
        yield Ask("complete", {"result": data.value["value"]})

    run_id = await house.start(program)
    await house.reaches(run_id, RunState.SUSPENDED)
    await house.engine.signal(run_id, "data", "kept")
    at = (await house.entries(run_id, "signal"))[0].seq
    await house.engine.signal(run_id, "data", "later")
    await house.engine.approve(run_id, None, approved=True)
    assert (await house.ends(run_id)).result == "kept"
    await house.engine.rewind(run_id, at)
    run = house.engine._runs[run_id]
    assert [signal.value for signal in run.record.waits.signals] == ["kept"]
    await house.engine.approve(run_id, None, approved=True)
    assert (await house.ends(run_id)).result == "kept"


async def test_a_turn_in_flight_is_given_up_and_its_machine_can_do_nothing(house: Any, provider: Any) -> None:
    run_id = await house.start(decision)
    await house.reaches(run_id, RunState.SUSPENDED)
    provider.hold = asyncio.Event()

    def streaming() -> Steps:
        verdict = yield approval("Publish?")
        turn = yield chat(verdict.value["comment"], stream=True)
        yield Ask("complete", {"result": turn.value.count("[DONE]")})

    house.machines.sandboxes[house.sandbox(run_id)].program = streaming
    at = (await house.engine.info(run_id)).seq
    await house.engine.approve(run_id, None, approved=True, comment="slow")
    await asyncio.wait_for(provider.reached.wait(), 10)
    epoch = (await house.engine.info(run_id)).epoch
    info = await house.engine.rewind(run_id, at)
    assert info.epoch > epoch
    assert not house.gateway.is_in_flight(run_id)
    provider.hold.set()
    await house.reaches(run_id, RunState.SUSPENDED, RunState.WAITING)
    await house.engine.approve(run_id, None, approved=True, comment="quick")
    assert (await house.ends(run_id)).result == 1
    asked = [e.payload["messages"][0]["content"] for e in await house.entries(run_id, "model.intent")]
    assert asked == ["quick"]


async def test_a_deadline_of_before_does_not_end_a_wait_that_has_longer(house: Any) -> None:
    house.settings = type(house.settings)(idle_grace_s=60, backoff_s=0.02)
    clock = await house.at(FakeClock())

    def program() -> Steps:
        yield chat("first")
        verdict = yield approval("Soon?", timeout_s=60)
        yield Ask("complete", {"result": verdict.value["timed_out"]})

    run_id = await house.start(program)
    await house.reaches(run_id, RunState.WAITING)
    run = house.engine._runs[run_id]
    (before,) = run.record.waits.open
    clock.move(40)
    await house.engine.rewind(run_id, (await house.entries(run_id, "wait.started"))[0].seq)
    (after,) = run.record.waits.open
    assert after.id == before.id
    assert after.until == pytest.approx(before.until + 40)
    await run.timeout(after.id)  # the older deadline, which is still in the heap
    assert run.record.waits.find(after.id) is not None
    clock.move(61)
    assert (await house.ends(run_id)).result is True


async def test_a_moment_that_was_named_comes_after_the_end_and_a_rewind_all_the_same(house: Any) -> None:
    clock = await house.at(FakeClock())
    moment = clock.time() + 3600

    def program() -> Steps:
        yield Ask("wait", {"kind": "time", "until": moment})
        yield Ask("complete", {"result": "woken"})

    run_id = await house.start(program)
    await house.waits(run_id, "time")
    at = (await house.entries(run_id, "wait.started"))[0].seq
    await house.engine.cancel(run_id, clean_up_s=0)
    await house.ends(run_id)
    await house.engine.rewind(run_id, at)
    await house.waits(run_id, "time")
    clock.move(3600)
    assert (await house.ends(run_id)).result == "woken"


async def test_a_rewind_is_taken_up_after_the_end_of_the_server(house: Any) -> None:
    run_id = await house.start(decision)
    await house.reaches(run_id, RunState.SUSPENDED)
    await house.engine.approve(run_id, None, approved=True, comment="one")
    await house.ends(run_id)
    await house.released(run_id)
    await house.down()
    await house.up()
    held = asyncio.Event()
    house.machines.before["start"] = held.wait
    await house.engine.rewind(run_id, await before_the_answer(house, run_id))
    await house.down()
    held.set()
    await house.up()
    await house.reaches(run_id, RunState.SUSPENDED)
    await house.engine.approve(run_id, None, approved=True, comment="two")
    assert (await house.ends(run_id)).result[0] == "answer to finish: two"


async def test_what_there_is_no_way_back_to(house: Any) -> None:
    run_id = await house.start(decision)
    await house.reaches(run_id, RunState.SUSPENDED)
    await house.engine.approve(run_id, None, approved=True, comment="one")
    info = await house.ends(run_id)
    await house.released(run_id)
    for to in (0, info.seq, info.seq + 5):
        with pytest.raises(InvalidValue):
            await house.engine.rewind(run_id, to)
    assert await house.engine.info(run_id) == info
    assert run_id not in house.engine._runs


async def ended(house: Any) -> tuple[str, int]:
    """A run of which nothing is in memory any more, and where it waited."""
    run_id = await house.start(decision)
    await house.reaches(run_id, RunState.SUSPENDED)
    await house.engine.approve(run_id, None, approved=True, comment="one")
    await house.ends(run_id)
    await house.released(run_id)
    return run_id, await before_the_answer(house, run_id)


@pytest.mark.parametrize("second", ["the same", "one that is refused"])
async def test_an_ended_run_that_two_take_back_at_once_has_one_driver(house: Any, second: str) -> None:
    run_id, at = await ended(house)
    other = at if second == "the same" else 1000
    rewinds = [house.engine.rewind(run_id, to) for to in (at, other)]
    first, told = await asyncio.gather(*rewinds, return_exceptions=True)
    assert not isinstance(first, BaseException)
    assert second == "the same" or isinstance(told, InvalidValue)
    assert len([task for task in asyncio.all_tasks() if task.get_name() == f"run-{run_id}"]) == 1
    await house.waits(run_id, "approval")
    await house.engine.approve(run_id, None, approved=True, comment="two")
    assert (await house.ends(run_id)).state is RunState.COMPLETED


async def test_a_rewind_whose_asker_hung_up_is_moved_along(house: Any) -> None:
    run_id, at = await ended(house)
    real, reached = house.log.fork, asyncio.Event()

    async def fork(*args: Any, **how: Any) -> Any:
        reached.set()
        return await real(*args, **how)

    house.log.fork = fork
    asking = asyncio.create_task(house.engine.rewind(run_id, at))
    await reached.wait()
    asking.cancel()
    await asyncio.wait({asking})
    await house.waits(run_id, "approval")
    await house.engine.approve(run_id, None, approved=True, comment="two")
    assert (await house.ends(run_id)).state is RunState.COMPLETED


async def test_a_run_that_pauses_before_its_next_attempt_goes_back_at_once(house: Any) -> None:
    run_id = await house.start(decision, retry={"any": Retry(attempts=2, delay_s=3600)})
    await house.reaches(run_id, RunState.SUSPENDED)
    await house.engine.approve(run_id, None, approved=True, comment="break")
    await house.reaches(run_id, RunState.RECOVERING)
    await house.engine.rewind(run_id, await before_the_answer(house, run_id))
    await house.waits(run_id, "approval")
    await house.engine.approve(run_id, None, approved=True, comment="two")
    assert (await house.ends(run_id)).state is RunState.COMPLETED


@pytest.mark.parametrize("name", ["value", "emit", "checkpoint", "step", "signal", "messages"])
async def test_who_goes_back_to_after_it_was_told_of_its_end_is_told_again(house: Any, name: str) -> None:
    told, go_on, cleaned = list[Any](), asyncio.Event(), asyncio.Event()
    body = {"value": {"of": "now"}, "emit": {"name": "a"}, "step": {"name": "a"}, "signal": {"run": "x", "name": "a"}}

    def program() -> Steps:
        yield Effect(go_on.wait)
        said = yield Ask(name, body.get(name, {}))
        told.append(said.value["error"]["code"])
        yield Ask("emit", {"name": "clean"})
        yield Effect(cleaned.wait)
        yield Ask("complete", {"result": 1})

    run_id = await house.start(program)
    await house.reaches(run_id, RunState.RUNNING)
    await house.engine.cancel(run_id)
    go_on.set()
    run = house.engine._runs[run_id]
    await run.until(lambda: run.record.ending.told, 10)
    cleaned.set()
    assert (await house.ends(run_id)).state is RunState.CANCELLED
    at = (await house.entries(run_id, "emit"))[-1].seq
    await house.engine.rewind(run_id, at)
    assert (await house.ends(run_id)).state is RunState.COMPLETED
    assert told == ["cancelled", "cancelled"]
