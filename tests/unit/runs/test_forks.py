"""Runs that branch off another one at an entry of its log, and go on by themselves."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure.errors import Conflict, InvalidValue, MachineFailed, NotFound, Unavailable
from perdure.model import RunState
from perdure.testing.clock import FakeClock
from perdure.testing.machines import Ask, Effect
from perdure.testing.programs import Steps, approval, chat


def decision() -> Steps:
    """One turn, a decision, and a turn about it."""
    first = yield chat("draft")
    verdict = yield approval("Publish?")
    second = yield chat(f"finish: {verdict.value['comment']}")
    texts = [turn.value["choices"][0]["message"]["content"] for turn in (first, second)]
    yield Ask("complete", {"result": [*texts, verdict.value["by"]]})


async def seq_of(house: Any, run_id: str, kind: str) -> int:
    return next(entry.seq for entry in await house.entries(run_id, kind))


async def test_forks_at_an_open_decision_are_answered_each_by_itself(house: Any, provider: Any) -> None:
    run_id = await house.start(decision)
    await house.reaches(run_id, RunState.SUSPENDED)
    forks = await house.engine.fork(run_id, count=3, name="try")
    assert [fork.name for fork in forks] == ["try-1", "try-2", "try-3"]
    for number, fork in enumerate(forks):
        await house.reaches(fork.id, RunState.SUSPENDED)
        await house.engine.approve(fork.id, None, approved=True, comment=f"way {number}", by=f"p{number}")
    results = [(await house.ends(fork.id)).result for fork in forks]
    assert results == [["answer to draft", f"answer to finish: way {n}", f"p{n}"] for n in range(3)]
    assert provider.requests == 4  # the draft once, and each fork's own turn
    assert [(await house.engine.info(fork.id)).turns_asked for fork in forks] == [1, 1, 1]
    assert house.machines.done.count("start") == 1  # each went on from the parent's snapshot
    assert house.machines.done.count("fork") == 3
    assert (await house.engine.info(run_id)).state is RunState.SUSPENDED  # the parent still waits
    await house.engine.approve(run_id, None, approved=True, comment="mine", by="me")
    assert (await house.ends(run_id)).result[1:] == ["answer to finish: mine", "me"]
    for one in (run_id, *(fork.id for fork in forks)):
        await house.context.verify(one)


async def test_forks_of_one_key_are_made_once(house: Any) -> None:
    run_id = await house.start(decision)
    await house.reaches(run_id, RunState.SUSPENDED)
    asked = {"count": 2, "name": "try", "key": "k 1/ä"}
    made, is_new = await house.engine.fork_once(run_id, **asked)
    again, is_new_again = await asyncio.gather(*(house.engine.fork_once(run_id, **asked) for _ in range(2)))
    await house.engine.approve(run_id, None, approved=True)  # the run has gone on: the key's forks are those of then
    await house.ends(run_id)
    await house.restart()
    later, _ = await house.engine.fork_once(run_id, **asked)
    ids = [fork.id for fork in made]
    assert [[fork.id for fork in forks] for forks in (again[0], is_new_again[0], later)] == [ids] * 3
    assert (is_new, again[1], is_new_again[1]) == (True, False, False)
    for other in ({"count": 3}, {"name": "other"}, {"at": 3}):
        with pytest.raises(Conflict, match=f"the key 'k 1/ä' is that of other forks of run {run_id}"):
            await house.engine.fork_once(run_id, **{**asked, **other})
    with pytest.raises(InvalidValue, match="key has 0 characters"):
        await house.engine.fork_once(run_id, key="")
    other, _ = await house.engine.fork_once(run_id, at=later[0].origin.seq, key="k2")
    assert len(await house.engine.runs()) == 4 and other[0].id not in ids


async def test_forks_whose_server_dies_among_them_are_made_up(house: Any) -> None:
    run_id = await house.start(decision)
    await house.reaches(run_id, RunState.SUSPENDED)
    real, calls = house.log.branch_off, 0

    async def dies(*args: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise Unavailable("the server dies here")
        return await real(*args, **more)

    house.log.branch_off = dies
    with pytest.raises(Unavailable):
        await house.engine.fork_once(run_id, count=3, key="k")
    (first,) = [info.id for info in await house.engine.runs() if info.origin]
    await house.engine.approve(run_id, None, approved=True)
    await house.ends(run_id)
    await house.restart()
    made, is_new = await house.engine.fork_once(run_id, count=3, key="k")
    assert (len(made), made[0].id, is_new) == (3, first, False)
    assert {fork.origin.seq for fork in made} == {made[0].origin.seq}
    for fork in made:
        await house.reaches(fork.id, RunState.SUSPENDED)


async def test_a_fork_shares_the_log_up_to_its_entry(house: Any) -> None:
    run_id = await house.start(decision)
    info = await house.reaches(run_id, RunState.SUSPENDED)
    (fork,) = await house.engine.fork(run_id)
    await house.reaches(fork.id, RunState.SUSPENDED)
    shared, mine = await house.entries(run_id), await house.entries(fork.id)
    assert mine[: info.seq] == shared
    forked, queued = mine[info.seq : info.seq + 2]
    assert (forked.kind, forked.run_id, forked.seq) == ("forked", fork.id, info.seq + 1)
    assert forked.payload["run"] == run_id and forked.payload["at"] == info.seq
    assert queued.kind == "run.queued"
    assert min(entry.epoch for entry in mine[info.seq + 2 :]) > max(entry.epoch for entry in shared)


async def test_a_completed_decision_is_answered_another_way(house: Any, provider: Any) -> None:
    run_id = await house.start(decision)
    await house.reaches(run_id, RunState.SUSPENDED)
    await house.engine.approve(run_id, None, approved=True, comment="first")
    await house.ends(run_id)
    await house.released(run_id)  # with all its snapshots: the log is enough
    at = await seq_of(house, run_id, "wait.completed") - 1
    (fork,) = await house.engine.fork(run_id, at=at)
    await house.reaches(fork.id, RunState.SUSPENDED)
    await house.engine.approve(fork.id, None, approved=True, comment="second")
    assert (await house.ends(fork.id)).result[:2] == ["answer to draft", "answer to finish: second"]
    assert provider.requests == 3
    assert (await house.ends(run_id)).result[1] == "answer to finish: first"


async def test_a_fork_of_an_ended_run_goes_on_before_its_end(house: Any, provider: Any) -> None:
    run_id = await house.start(decision)
    await house.reaches(run_id, RunState.SUSPENDED)
    await house.engine.approve(run_id, None, approved=True, comment="only")
    ended = await house.ends(run_id)
    await house.released(run_id)
    (fork,) = await house.engine.fork(run_id)
    assert (await house.ends(fork.id)).result == ended.result
    assert provider.requests == 2  # everything was answered from the log
    with pytest.raises(InvalidValue, match="ended it"):
        await house.engine.fork(run_id, at=await seq_of(house, run_id, "run.completed"))


async def test_the_nearest_snapshot_below_is_the_one(house: Any, provider: Any) -> None:
    def program() -> Steps:
        answers = []
        for number in range(3):
            verdict = yield approval(f"{number}?")
            answers.append(verdict.value["comment"])
        yield Ask("complete", {"result": answers})

    run_id = await house.start(program)
    decisions = []
    for number in range(3):
        info = await house.reaches(run_id, RunState.SUSPENDED)
        decisions.append(info.seq)
        if number < 2:
            await house.engine.approve(run_id, info.waits[0]["id"], approved=True, comment=str(number))
            await house.reaches(run_id, RunState.RESUMING, RunState.RUNNING, RunState.WAITING)
    (fork,) = await house.engine.fork(run_id, at=decisions[1])
    assert len((await house.reaches(fork.id, RunState.SUSPENDED)).waits) == 1
    running = [e for e in await house.entries(fork.id, "run.running") if e.run_id == fork.id]
    second = (await house.entries(run_id, "snapshot"))[1].payload["snapshot"]["digest"]
    assert running[0].payload["from"] == second
    for word in ("x", "y"):
        info = await house.reaches(fork.id, RunState.SUSPENDED)
        await house.engine.approve(fork.id, info.waits[0]["id"], approved=True, comment=word)
        await house.reaches(fork.id, RunState.RESUMING, RunState.RUNNING, RunState.WAITING, RunState.COMPLETED)
    assert (await house.ends(fork.id)).result == ["0", "x", "y"]


async def test_a_fork_of_a_fork_and_a_lost_machine_of_one(house: Any, provider: Any) -> None:
    run_id = await house.start(decision)
    await house.reaches(run_id, RunState.SUSPENDED)
    (one,) = await house.engine.fork(run_id)
    await house.reaches(one.id, RunState.SUSPENDED)
    (two,) = await house.engine.fork(one.id)
    await house.reaches(two.id, RunState.SUSPENDED)
    house.machines.sandboxes.clear()  # all of them, with their snapshots
    await house.engine.approve(two.id, None, approved=True, comment="late")
    info = await house.ends(two.id)
    assert info.result[:2] == ["answer to draft", "answer to finish: late"]
    assert provider.requests == 2
    assert [part.run_id for part in await house.context.lineage(two.id)] == [two.id, one.id, run_id]


async def test_time_stood_still_for_a_forks_open_waits(house: Any) -> None:
    clock = await house.at(FakeClock())

    def program() -> Steps:
        verdict = yield approval("Soon?", timeout_s=60)
        yield Ask("complete", {"result": verdict.value["timed_out"]})

    run_id = await house.start(program)
    await house.reaches(run_id, RunState.WAITING)
    at = await seq_of(house, run_id, "wait.started")
    clock.move(61)
    assert (await house.ends(run_id)).result is True
    (fork,) = await house.engine.fork(run_id, at=at)
    await house.engine.approve(fork.id, None, approved=True)
    assert (await house.ends(fork.id)).result is False


async def test_a_step_that_was_under_way_is_in_doubt_in_a_fork(house: Any) -> None:
    effects: list[str] = []

    def program() -> Steps:
        asked = yield Ask("step", {"name": "pay", "on_doubt": "ask"}, at=0)
        value = asked.value
        if value["status"] == "run":
            yield Effect(lambda: effects.append(value["idempotency_key"]))
            ended = yield Ask("step/end", {"result": "paid"}, at=0)
            value = ended.value
        yield Ask("wait", {"kind": "approval", "prompt": "Go on?"}, at=1)
        yield Ask("complete", {"result": value}, at=2)

    run_id = await house.start(program)
    await house.reaches(run_id, RunState.SUSPENDED)
    (fork,) = await house.engine.fork(run_id, at=await seq_of(house, run_id, "step.intent"))
    await house.reaches(fork.id, RunState.SUSPENDED)
    (doubt,) = (await house.engine.info(fork.id)).waits
    assert doubt["kind"] == "doubt"
    await house.engine.approve(fork.id, doubt["id"], approved=True)
    await house.reaches(fork.id, RunState.RUNNING, RunState.WAITING, RunState.RESUMING)
    run = house.engine._runs[fork.id]
    assert await run.until(lambda: any(wait.kind == "approval" for wait in run.record.waits.open), 10)
    assert len(set(effects)) == len(effects) == 2  # another run: its effect has a key of its own
    await house.engine.approve(fork.id, None, approved=True)
    assert (await house.ends(fork.id)).result["result"] == "paid"


async def test_forks_survive_the_end_of_the_server(house: Any, provider: Any) -> None:
    run_id = await house.start(decision)
    await house.reaches(run_id, RunState.SUSPENDED)
    held = asyncio.Event()
    house.machines.before["fork"] = held.wait
    (fork,) = await house.engine.fork(run_id)
    await house.reaches(fork.id, RunState.STARTING)
    await house.down()
    held.set()
    await house.up()
    await house.reaches(fork.id, RunState.SUSPENDED)
    await house.engine.approve(fork.id, None, approved=True, comment="after")
    assert (await house.ends(fork.id)).result[1] == "answer to finish: after"
    assert [e.kind for e in await house.entries(fork.id) if e.run_id == fork.id][:2] == ["forked", "run.queued"]
    assert provider.requests == 2


async def test_what_cannot_be_forked(house: Any) -> None:
    run_id = await house.start(decision)
    info = await house.reaches(run_id, RunState.SUSPENDED)
    for at in (0, -3, info.seq + 1):
        with pytest.raises(InvalidValue, match=f"has 1 to {info.seq}"):
            await house.engine.fork(run_id, at=at)
    for count in (0, 101):
        with pytest.raises(InvalidValue, match="1 to 100"):
            await house.engine.fork(run_id, count=count)
    with pytest.raises(NotFound):
        await house.engine.fork("nobody")
    assert len(await house.engine.runs()) == 1


async def test_a_warm_machine_is_captured_for_a_fork_of_now(house: Any, provider: Any) -> None:
    house.settings = type(house.settings)(idle_grace_s=60, backoff_s=0.02)
    await house.down()
    await house.up()
    run_id = await house.start(decision)
    await house.reaches(run_id, RunState.WAITING)
    (fork,) = await house.engine.fork(run_id)
    await house.reaches(fork.id, RunState.WAITING)
    assert house.machines.done == ["start", "checkpoint", "fork"]
    assert (await house.engine.info(run_id)).state is RunState.WAITING  # it runs on
    await house.engine.approve(fork.id, None, approved=True, comment="x")
    assert (await house.ends(fork.id)).result[1] == "answer to finish: x"
    assert provider.requests == 2


async def test_a_fork_is_made_although_the_machine_cannot_be_captured(house: Any, provider: Any) -> None:
    house.settings = type(house.settings)(idle_grace_s=60, backoff_s=0.02)
    await house.down()
    await house.up()

    async def refuse() -> None:
        raise MachineFailed("no room")

    house.machines.before["checkpoint"] = refuse
    run_id = await house.start(decision)
    await house.reaches(run_id, RunState.WAITING)
    (fork,) = await house.engine.fork(run_id)
    await house.reaches(fork.id, RunState.WAITING)
    assert house.machines.done == ["start", "start"]
    assert provider.requests == 1  # the turn was answered from the log
