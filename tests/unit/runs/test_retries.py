"""A run that failed is tried again: when, how often, and what the new attempt does not do a second time."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from perdure.context.log import NewEntry
from perdure.errors import InvalidValue, MachineFailed
from perdure.model import Entry, Retry, RunState
from perdure.runs import retries, travel
from perdure.runs.retries import Carried
from perdure.runs.waits import Waits
from perdure.testing.clock import FakeClock
from perdure.testing.house import QUICK, nothing
from perdure.testing.machines import Ask, Effect
from perdure.testing.programs import Steps, chat

AT_ONCE = {"any": Retry(attempts=3, delay_s=0)}


def breaks(code: str = "agent-failed") -> Ask:
    return Ask("fail", {"error": {"code": code, "message": "no such owl"}})


@pytest.mark.parametrize(
    ("retry", "words"),
    [
        ({"fire": Retry(attempts=2)}, "no such kind of failure: 'fire'"),
        ({"any": Retry(attempts=0)}, "any: attempts is 0"),
        ({"any": Retry(attempts=2, factor=0.5)}, "factor is 0.5"),
        ({"timed-out": Retry(attempts=2, delay_s=-1)}, "timed-out: delay_s is -1"),
        ({"any": Retry(attempts=2, jitter=float("nan"))}, "jitter is nan"),
    ],
)
async def test_wrong_policies_are_refused(house: Any, retry: Any, words: str) -> None:
    with pytest.raises(InvalidValue, match=words):
        await house.start(nothing, retry=retry)


async def test_what_succeeded_is_not_done_again_and_what_failed_is(house: Any, provider: Any) -> None:
    done: list[Any] = []

    def program() -> Steps:
        turn = yield chat("one")
        first = yield Ask("step", {"name": "pay", "on_doubt": "retry"})
        if first.value["status"] == "run":
            yield Effect(lambda: done.append("pay"))
            yield Ask("step/end", {"result": "paid"}, at=0)
        yield Ask("emit", {"name": "said", "value": turn.value["choices"][0]["message"]["content"]}, at=20)
        second = yield Ask("step", {"name": "ship", "on_doubt": "ask"}, at=21)
        done.append((second.value["status"], second.value["idempotency_key"]))
        if len(done) < 4:
            yield Ask("step/end", {"error": {"type": "OSError", "message": "no ship"}}, at=21)
            yield breaks()
            return
        yield Ask("step/end", {"result": "shipped"}, at=21)
        yield Ask("complete", {"result": "done"})

    def counted() -> Steps:  # the model is asked in a lane of its own, so that its key is none of a step
        program_ = program()
        wanted = next(program_)
        while True:
            if isinstance(wanted, Ask) and wanted.path.endswith("completions"):
                wanted = dataclasses.replace(wanted, lane="model")
            try:
                wanted = program_.send((yield wanted))
            except StopIteration:
                return

    run_id = await house.start(counted, retry=AT_ONCE)
    info = await house.ends(run_id)
    assert (info.state, info.result, info.attempt) == (RunState.COMPLETED, "done", 3)
    assert provider.requests == 1
    assert done[0] == "pay" and done.count("pay") == 1
    # each attempt began it, none asked a person, and the world can tell that it is the same step
    assert [status for status, _ in done[1:]] == ["run"] * 3 and len({key for _, key in done[1:]}) == 1
    assert info.branch == 3 and info.turns_asked == 1
    assert len(await house.entries(run_id, "emit")) == 1
    why = [entry.payload for entry in await house.entries(run_id, "run.recovering")]
    assert why[-1]["cause"] == "retry" and "attempt 3 is next, after agent-failed: no such owl" in why[-1]["detail"]
    assert (await house.context.verify(run_id)).branches == 3


async def test_after_the_last_attempt_it_has_failed(house: Any) -> None:
    lives = 0

    def program() -> Steps:
        nonlocal lives
        lives += 1
        yield Ask("begin", {})
        yield breaks()

    info = await house.ends(await house.start(program, retry={"agent-failed": Retry(attempts=2, delay_s=0)}))
    assert (info.state, info.error["message"], info.attempt, lives) == (RunState.FAILED, "no such owl", 2, 2)


@pytest.mark.parametrize("code", ["agent-invalid", "diverged"])
async def test_what_would_fail_again_is_not_tried_again(house: Any, code: str) -> None:
    def program() -> Steps:
        yield breaks(code)

    info = await house.ends(await house.start(program, retry=AT_ONCE))
    assert (info.state, info.attempt) == (RunState.FAILED, 1)


async def test_a_kind_has_its_own_policy(house: Any) -> None:
    async def refuse() -> None:
        raise MachineFailed("on fire")

    house.machines.before["start"] = refuse
    info = await house.ends(await house.start(nothing, retry={"agent-failed": Retry(attempts=5, delay_s=0)}))
    assert (info.error["code"], info.attempt) == ("machine-failed", 1)
    info = await house.ends(await house.start(nothing, retry={"machine-failed": Retry(attempts=2, delay_s=0)}))
    assert (info.error["code"], info.attempt) == ("machine-failed", 2)

    def exits() -> Steps:
        yield Ask("begin", {})
        return 3

    house.machines.before.clear()
    info = await house.ends(await house.start(exits, retry={"program-failed": Retry(attempts=2, delay_s=0)}))
    assert (info.error["code"], info.attempt) == ("program-failed", 2)


async def test_the_pause_is_durable_has_no_machine_and_may_be_cancelled(house: Any) -> None:
    clock = await house.at(FakeClock())

    def program() -> Steps:
        yield Ask("begin", {})
        yield breaks()

    removed = asyncio.Event()

    async def notice() -> None:
        if house.machines.done:
            removed.set()

    house.machines.before["remove"] = notice
    pauses = Retry(attempts=5, delay_s=3600, max_delay_s=1e5, jitter=0)
    run_id = await house.start(program, retry={"any": pauses})
    run = house.engine._runs[run_id]
    assert await run.until(lambda: run.record.attempt == 2, 20)
    await asyncio.wait_for(removed.wait(), 20)
    clock.move(3000)
    await house.restart()
    assert (await house.engine.info(run_id)).state is RunState.RECOVERING
    assert house.machines.done.count("start") == 1
    clock.move(601)
    run = house.engine._runs[run_id]
    assert await run.until(lambda: run.record.attempt == 3, 20)
    assert run.record.retry_at == clock.time() + 7200
    await house.engine.cancel(run_id)
    assert (await house.engine.info(run_id)).state is RunState.CANCELLED


async def test_a_time_limit_is_that_of_an_attempt(house: Any) -> None:
    house.settings = dataclasses.replace(QUICK, idle_grace_s=0)
    clock = await house.at(FakeClock())
    told = []

    def program() -> Steps:
        told.append((yield Ask("wait", {"kind": "signal", "name": "go"})))
        yield Ask("complete", {"result": 1})

    run_id = await house.start(program, timeout_s=60, retry={"timed-out": Retry(attempts=2, delay_s=0)})
    await house.reaches(run_id, RunState.SUSPENDED)
    clock.move(61)
    run = house.engine._runs[run_id]
    assert await run.until(lambda: run.record.attempt == 2 and run.record.waits.open, 20)
    assert run.record.ending is None and told[0].status == 409
    await house.engine.signal(run_id, "go", None)  # the wait is asked anew: it was not over
    assert (await house.ends(run_id)).result == 1


async def test_a_child_that_failed_is_run_anew_by_the_next_attempt(house: Any) -> None:
    children, told = 0, []

    def program() -> Steps:
        nonlocal children
        begun = yield Ask("begin", {})
        if begun.value["agent"].endswith(":child"):
            children += 1
            yield breaks("agent-invalid") if children == 1 else Ask("complete", {"result": "fledged"})
            return
        owl = yield Ask("wait", {"kind": "child", "function": "child"})
        told.append(owl.value)
        yield breaks("agent-failed") if "error" in owl.value else Ask("complete", {"result": owl.value["result"]})

    info = await house.ends(await house.start(program, retry={"agent-failed": Retry(attempts=2, delay_s=0)}))
    assert (info.state, info.result, info.attempt) == (RunState.COMPLETED, "fledged", 2)
    assert told[0]["run_id"] != told[1]["run_id"]


@pytest.mark.parametrize("policy", ["fork", "fail"])
async def test_of_children_that_a_run_waits_for_together_only_those_that_failed_are_run_anew(
    house: Any, policy: str
) -> None:
    lives: dict[str, int] = {"one": 0, "two": 0}
    told = []

    def program() -> Steps:
        begun = yield Ask("begin", {})
        name = begun.value["agent"].partition(":")[2]
        if name in lives:
            lives[name] += 1
            fails = name == "two" and lives[name] == 1
            yield breaks("agent-invalid") if fails else Ask("complete", {"result": name})
            return
        both = [{"kind": "child", "function": one} for one in lives]
        approval = {"kind": "approval", "prompt": "Go on?"}
        said = yield Ask("wait/set", {"mode": "all", "waits": [*both, approval]})
        told.append(said.value["waits"])
        failed = any("error" in one for one in said.value["waits"])
        yield breaks() if failed else Ask("complete", {"result": said.value["order"]})

    run_id = await house.start(program, retry={"agent-failed": Retry(attempts=2, delay_s=0)}, on_divergence=policy)
    run = house.engine._runs[run_id]
    assert await run.until(lambda: run.record.waits.askable, 20)
    await house.engine.approve(run_id, None, approved=True, by="ann")
    info = await house.ends(run_id)
    assert (info.state, info.attempt, lives) == (RunState.COMPLETED, 2, {"one": 1, "two": 2})
    assert told[0][0] == told[1][0] and told[0][2] == told[1][2]  # what succeeded, and what ann said
    assert told[1][1]["result"] == "two" and told[1][1]["run_id"] != told[0][1]["run_id"]
    assert sorted(info.result) == [0, 1, 2] and info.result[-1] == 1
    await house.restart()
    assert await travel.waits_at(house.context, run_id, info.branch, 10**6) == Waits()


async def test_of_waits_for_all_that_a_time_limit_ended_what_came_is_not_waited_for_again(house: Any) -> None:
    clock, children = await house.at(FakeClock()), dict[str, set[str]]()

    def program() -> Steps:
        begun = yield Ask("begin", {})
        name = begun.value["agent"].partition(":")[2]
        if name in ("quick", "slow"):
            children.setdefault(name, set()).add(begun.value["run_id"])
            if name == "slow" and len(children[name]) == 1:
                yield Ask("wait", {"kind": "signal", "name": "never"})
            yield Ask("complete", {"result": name})
            return
        waits = [{"kind": "child", "function": "quick"}, {"kind": "child", "function": "slow"}]
        waits += [{"kind": "approval", "prompt": "Go on?"}, {"kind": "signal", "name": "a"}]
        said = yield Ask("wait/set", {"mode": "all", "waits": waits, "timeout_s": 1000})
        yield breaks() if said.status == 409 else Ask("complete", {"result": said.value["waits"]})

    run_id = await house.start(program, timeout_s=60, retry={"timed-out": Retry(attempts=2, delay_s=0)})
    run = house.engine._runs[run_id]
    assert await run.until(lambda: run.record.waits.askable and len(run.record.waits.open) == 4, 20)  # quick has ended
    await house.engine.approve(run_id, None, approved=True, by="ann")
    await house.engine.signal(run_id, "a", 1, "a-1")
    (first,) = [wait for wait in run.record.waits.open if wait.kind == "all"]
    clock.move(61)
    assert await run.until(lambda: run.record.attempt == 2, 20)
    (second,) = [wait for wait in run.record.waits.open if wait.kind == "all"]
    assert (second.id, second.until) == (first.id, run.record.began + 1000)
    quick, slow, said, value = (await house.ends(run_id)).result
    assert (quick["result"], slow["result"], said["by"], value["value"]) == ("quick", "slow", "ann", 1)
    assert {name: len(runs) for name, runs in children.items()} == {"quick": 1, "slow": 2}
    await house.context.verify(run_id)


async def test_a_set_that_is_reopened_has_its_own_time_however_long_going_back_had_made_it_before(house: Any) -> None:
    house.settings = dataclasses.replace(QUICK, idle_grace_s=1e10)
    clock, lives = await house.at(FakeClock()), 0

    def program() -> Steps:
        nonlocal lives
        lives += 1
        waits = [{"kind": "approval", "prompt": "Go on?"}, {"kind": "signal", "name": "a"}]
        said = yield Ask("wait/set", {"mode": "all", "waits": waits, "timeout_s": 1000})
        yield breaks() if said.status == 409 else Ask("complete", {"result": said.value["timed_out"]})

    run_id = await house.start(program, timeout_s=800, retry={"timed-out": Retry(attempts=3, delay_s=0)})
    await house.waits(run_id, "all")
    clock.move(500)
    await house.engine.rewind(run_id, (await house.entries(run_id, "wait.started"))[0].seq)
    run = house.engine._runs[run_id]
    for attempt in (2, 3):
        assert await run.until(lambda attempt=attempt: lives == attempt and run.state is RunState.WAITING, 20)
        clock.move(801)
        assert await run.until(lambda attempt=attempt: run.record.attempt == attempt, 20)
        (whole,) = [wait for wait in run.record.waits.open if wait.kind == "all"]
        assert whole.until == pytest.approx(run.record.began + 1000, abs=5)
    assert await travel.waits_at(house.context, run_id, run.branch, 10**6) == run.record.waits  # as the log has it


@pytest.mark.parametrize("answer", ["comes", "fails"])
async def test_a_wait_for_any_has_its_answer_in_the_next_attempt_unless_that_failed(house: Any, answer: str) -> None:
    lives, told = 0, []

    def program() -> Steps:
        nonlocal lives
        begun = yield Ask("begin", {})
        if begun.value["agent"].endswith(":child"):
            lives += 1
            yield breaks("agent-invalid") if answer == "fails" and lives == 1 else Ask("complete", {"result": "owl"})
            return
        waits = [{"kind": "signal", "name": "never"}, {"kind": "child", "function": "child"}]
        said = yield Ask("wait/set", {"mode": "any", "waits": waits})
        told.append(said.value)
        yield breaks() if len(told) == 1 else Ask("complete", {"result": said.value["waits"][1]["result"]})

    run_id = await house.start(program, retry={"agent-failed": Retry(attempts=2, delay_s=0)})
    info = await house.ends(run_id)
    assert (info.result, info.attempt, lives) == ("owl", 2, 2 if answer == "fails" else 1)
    assert (told[0] == told[1]) == (answer == "comes")


@pytest.mark.parametrize("way", ["rewind", "fork"])
async def test_an_open_wait_keeps_the_time_that_going_back_gave_it(house: Any, way: str) -> None:
    house.settings = dataclasses.replace(QUICK, idle_grace_s=1e10, failures_max=0)
    clock = await house.at(FakeClock())

    def program() -> Steps:
        yield Ask("step", {"name": "s", "on_doubt": "retry"})
        wait = Ask("wait", {"kind": "signal", "name": "go", "timeout_s": 100}, lane="other")
        fails = Ask("step/end", {"error": {"type": "OSError", "message": "no owl"}}, at=0)
        yield [wait, fails, Ask("wait", {"kind": "signal", "name": "never"}, lane="third")]
        yield Ask("complete", {"result": 1})

    run_id = await house.start(program, retry={"machine-failed": Retry(attempts=2, delay_s=0)})
    await house.waits(run_id, "signal")
    (wait,) = [wait for wait in (await house.engine.info(run_id)).waits if wait["name"] == "go"]
    clock.move(60)
    at = (await house.entries(run_id, "wait.started"))[0].seq
    if way == "rewind":
        await house.engine.rewind(run_id, at)
    else:
        run_id = (await house.engine.fork(run_id, at=at))[0].id
    run = house.engine._runs[run_id]
    assert await run.until(lambda: "never" in [wait.name for wait in run.record.waits.open], 20)
    await house.kill_machine(run_id)  # it begins again, without the step that failed
    assert await run.until(lambda: run.record.attempt == 2, 20)
    (kept,) = [wait for wait in run.record.waits.open if wait.name == "go"]
    assert kept.until == pytest.approx(wait["until"] + 60, abs=5)
    await house.restart()
    assert await travel.waits_at(house.context, run_id, run.branch, 10**6) == run.record.waits  # as the log has it


def test_pauses_grow_to_their_maximum_and_are_the_same_for_whoever_asks() -> None:
    policy = {"any": Retry(attempts=6, delay_s=1, factor=3, max_delay_s=10, jitter=0)}
    pauses = [retries.pause_s(policy, "agent-failed", "agent-failed", "run", n) for n in range(1, 7)]
    assert pauses == [1, 3, 9, 10, 10, None]
    policy = {"timed-out": Retry(attempts=2, delay_s=10, jitter=0.5)}
    drawn = {retries.pause_s(policy, "timed-out", "timed-out", f"run{n}", 1) for n in range(50)}
    assert len(drawn) == 50 and all(pause is not None and 10 <= pause <= 15 for pause in drawn)
    assert retries.pause_s(policy, "timed-out", "timed-out", "run1", 1) in drawn
    assert retries.pause_s(policy, "agent-failed", "x", "run", 1) is None
    assert retries.pause_s({"any": Retry(attempts=9)}, "", "not-found", "run", 1) is None


def test_an_attempt_that_may_not_go_another_way_asks_the_rest_of_a_lane_anew() -> None:
    def entry(seq: int, kind: str, key: str | None, **payload: Any) -> Entry:
        return Entry(run_id="r", branch=1, seq=seq, epoch=1, time=0, kind=kind, key=key, payload=payload)

    entries = [
        entry(1, "run.queued", None),
        entry(2, "step.intent", "main/1"),
        entry(3, "emit", "other/0"),
        entry(4, "step.result", "main/1", error={}),
        entry(5, "emit", "main/2"),
        entry(6, "signal", None, signal={"id": "s", "name": "n", "at": 1.0}),
        entry(7, "run.recovering", None),
    ]
    found = {}
    for whole in (False, True):
        carried = Carried(whole_lanes=whole)
        for one in entries:
            carried.feed(one)
        fork = carried.fork()
        assert fork is not None
        assert fork[0] == 1
        found[whole] = [(new.kind, new.key) for new in fork[2] if isinstance(new, NewEntry)]
    assert found[False] == [("emit", "other/0"), ("emit", "main/2"), ("signal", None)]
    assert found[True] == [("emit", "other/0"), ("signal", None)]
