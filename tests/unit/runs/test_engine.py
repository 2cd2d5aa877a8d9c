"""Runs from their start to their end: waits, suspends, losses, restarts, divergence. Each in all its races."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any

import pytest

from perdure.errors import (
    Conflict,
    IllegalTransition,
    InvalidValue,
    MachineFailed,
    NoSpace,
    NotFound,
    StaleEpoch,
    Unavailable,
)
from perdure.model import Call, LogPosition, RunState
from perdure.testing.house import nothing
from perdure.testing.machines import CHAT, Ask, Effect

Steps = Generator[Any, Any, Any]


def approval(prompt: str = "Publish?", **more: Any) -> Ask:
    return Ask("wait", {"kind": "approval", "prompt": prompt, **more})


def chat(text: str, **more: Any) -> Ask:
    return Ask(CHAT, {"messages": [{"role": "user", "content": text}], **more})


def step(name: str, do: Callable[[], Any], on_doubt: str, at: int) -> Steps:
    """As ctx.step does it."""
    asked = yield Ask("step", {"name": name, "on_doubt": on_doubt}, at=at)
    if asked.value["status"] == "run":
        result = yield Effect(do)
        asked = yield Ask("step/end", {"result": result}, at=at)
    return asked.value


async def test_a_run_completes_and_its_machine_is_removed(house: Any) -> None:
    def program() -> Steps:
        begun = yield Ask("begin", {})
        yield Ask("emit", {"name": "topic", "value": begun.value["input"]["topic"]})
        yield Ask("complete", {"result": "done"})

    run_id = await house.start(program, input={"topic": "owls"})
    info = await house.ends(run_id)
    assert (info.state, info.result, info.agent) == (RunState.COMPLETED, "done", "agent.py:main")
    kinds = [entry.kind for entry in await house.entries(run_id)]
    assert kinds == ["run.queued", "run.starting", "run.running", "emit", "run.completed"]
    assert (await house.context.verify(run_id)).entries == len(kinds)
    await released(house, run_id)
    assert house.machines.sandboxes == {}


async def released(house: Any, run_id: str) -> None:
    run = house.engine._runs.get(run_id)
    assert run is None or await run.until(lambda: run.record.released, 10)


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
    go = asyncio.Event()

    def program() -> Steps:
        yield Ask("wait", {"kind": "signal", "name": "start"})
        one = yield Ask("wait", {"kind": "signal", "name": "data"})
        two = yield Ask("wait", {"kind": "signal", "name": "data"})
        yield Ask("complete", {"result": [one.value["value"], two.value["value"]]})

    run_id = await house.start(program)
    await house.reaches(run_id, RunState.WAITING, RunState.SUSPENDED)
    for value in (1, 2):
        await house.engine.signal(run_id, "data", value)
    assert (await house.engine.info(run_id)).state is not RunState.COMPLETED
    await house.engine.signal(run_id, "start", None)
    assert (await house.ends(run_id)).result == [1, 2]
    del go


async def test_timers_and_timeouts(house: Any) -> None:
    def program() -> Steps:
        yield Ask("wait", {"kind": "time", "seconds": 0.2})
        late = yield Ask("wait", {"kind": "signal", "name": "never", "timeout_s": 0.1})
        verdict = yield approval(timeout_s=0.1)
        yield Ask(
            "complete", {"result": [late.value["timed_out"], verdict.value["approved"], verdict.value["timed_out"]]}
        )

    run_id = await house.start(program)
    assert (await house.ends(run_id)).result == [True, False, True]
    with pytest.raises(Conflict, match="timed out at"):
        await house.engine.approve(run_id, None, approved=True)


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


async def test_a_killed_machine_recovers_from_the_start_without_a_snapshot(house: Any, provider: Any) -> None:
    effects: list[str] = []

    def program() -> Steps:
        one = yield chat("one")
        yield from step("write", lambda: effects.append("write") or len(effects), "ask", 1)
        yield Ask("wait", {"kind": "signal", "name": "go"}, at=2)
        yield Ask("complete", {"result": one.value["choices"][0]["message"]["content"]}, at=3)

    house.settings = type(house.settings)(idle_grace_s=60, backoff_s=0.02)
    await house.down()
    await house.up()
    run_id = await house.start(program)
    await house.reaches(run_id, RunState.WAITING)
    for _ in range(3):
        await house.kill_machine(run_id)
        await house.reaches(run_id, RunState.RECOVERING, RunState.STARTING, RunState.RUNNING)
        await house.reaches(run_id, RunState.WAITING)
    await house.engine.signal(run_id, "go", None)
    info = await house.ends(run_id)
    assert info.result == "answer to one"
    assert (provider.requests, effects) == (1, ["write"])
    assert (info.turns_asked, info.turns_replayed, info.recoveries, info.epoch) == (1, 3, 3, 4)
    causes = [entry.payload["cause"] for entry in await house.entries(run_id, "run.recovering")]
    assert causes == ["machine-died"] * 3


async def test_a_machine_killed_in_the_middle_of_a_turn_attaches_to_it_again(house: Any, provider: Any) -> None:
    def program() -> Steps:
        yield approval()
        first = yield chat("one", stream=True)
        second = yield chat("two", stream=True)
        yield Ask("complete", {"result": [first.value.count("[DONE]"), second.value.count("[DONE]")]})

    run_id = await house.start(program)
    await house.reaches(run_id, RunState.SUSPENDED)
    provider.hold = asyncio.Event()
    await house.engine.approve(run_id, None, approved=True)
    await asyncio.wait_for(provider.reached.wait(), 10)
    await house.kill_machine(run_id)
    await house.reaches(run_id, RunState.RECOVERING, RunState.RUNNING)
    provider.hold.set()
    info = await house.ends(run_id)
    assert info.result == [1, 1]
    assert (provider.requests, info.turns_asked) == (2, 2)
    assert house.machines.done == ["start", "suspend", "resume", "resume"]


@pytest.mark.parametrize("state", ["waiting", "suspended"])
async def test_a_killed_server_goes_on(house: Any, provider: Any, state: str) -> None:
    def program() -> Steps:
        yield chat("one")
        verdict = yield approval()
        yield chat("two")
        yield Ask("complete", {"result": verdict.value["comment"]})

    if state == "waiting":
        house.settings = type(house.settings)(idle_grace_s=60)
        await house.down()
        await house.up()
    run_id = await house.start(program)
    await house.reaches(run_id, RunState(state))
    await house.down()
    await house.up()
    assert (await house.engine.info(run_id)).state is RunState(state)
    await house.engine.approve(run_id, None, approved=True, comment="go")
    info = await house.ends(run_id)
    assert (info.result, info.recoveries) == ("go", 0)
    assert provider.requests == 2


async def test_timers_run_out_while_no_server_lives(house: Any) -> None:
    def program() -> Steps:
        yield Ask("wait", {"kind": "time", "seconds": 0.3})
        yield Ask("complete", {"result": "woken"})

    run_id = await house.start(program)
    await house.reaches(run_id, RunState.SUSPENDED)
    await house.down()
    await asyncio.to_thread(__import__("time").sleep, 0.4)
    await house.up()
    assert (await house.ends(run_id)).result == "woken"


async def test_a_machine_that_dies_while_no_server_lives_is_recovered(house: Any) -> None:
    house.settings = type(house.settings)(idle_grace_s=60, backoff_s=0.02)
    await house.down()
    await house.up()

    def program() -> Steps:
        verdict = yield approval()
        yield Ask("complete", {"result": verdict.value["by"]})

    run_id = await house.start(program)
    await house.reaches(run_id, RunState.WAITING)
    sandbox_id = house.sandbox(run_id)
    await house.down()
    await house.machines.kill(sandbox_id, cause="keeper-died")
    await house.up()
    await house.reaches(run_id, RunState.RECOVERING, RunState.STARTING, RunState.RUNNING)
    await house.engine.approve(run_id, None, approved=True, by="bob")
    info = await house.ends(run_id)
    assert (info.result, info.recoveries) == ("bob", 1)


async def test_repeated_failure_without_progress_fails_with_its_cause(house: Any) -> None:
    async def refuse() -> None:
        raise MachineFailed("the emulated host is on fire")

    house.machines.before["start"] = refuse
    run_id = await house.start(nothing)
    info = await house.ends(run_id)
    assert info.state is RunState.FAILED
    assert "gave up after 6 failures in a row: start-failed (the emulated host is on fire)" in info.error["message"]


async def test_wrong_input_of_a_start_fails_at_once_with_its_error(house: Any) -> None:
    async def refuse() -> None:
        raise NotFound("no such image: nope", hint="`fcrun images` lists them.")

    house.machines.before["start"] = refuse
    info = await house.ends(await house.start(nothing))
    assert info.error["code"] == "not-found"
    assert (info.recoveries, info.error["hint"]) == (0, "`fcrun images` lists them.")


async def test_an_agent_that_ends_without_a_result_has_failed(house: Any) -> None:
    def program() -> Steps:
        yield Ask("begin", {})
        return 3

    info = await house.ends(await house.start(program))
    assert info.state is RunState.FAILED
    assert "exit status 3" in info.error["message"]
    assert info.error["details"]["output"] == "output\n"


async def test_a_command_completes_with_its_exit_status_and_output(house: Any) -> None:
    def program() -> Steps:
        yield chat("hello")

    run_id = await house.start(program, source="", file="", function="", command=["sh", "-c", "true"])
    info = await house.ends(run_id)
    assert info.result == {"exit_status": 0, "output": "output\n"}
    assert info.agent == "sh -c true"


async def test_fail_ends_the_run_with_its_error(house: Any) -> None:
    def program() -> Steps:
        yield Ask(
            "fail", {"error": {"code": "agent-failed", "message": "boom", "type": "ValueError", "traceback": "t"}}
        )

    info = await house.ends(await house.start(program))
    assert info.state is RunState.FAILED
    assert info.error == {
        "code": "agent-failed", "message": "boom", "hint": "", "details": {"type": "ValueError", "traceback": "t"}
    }  # fmt: skip


async def test_cancel_ends_the_machine_and_fences_it(house: Any) -> None:
    def program() -> Steps:
        yield approval()

    run_id = await house.start(program)
    await house.reaches(run_id, RunState.WAITING, RunState.SUSPENDED)
    await house.engine.cancel(run_id, "not needed")
    info = await house.ends(run_id)
    assert (info.state, info.error["message"]) == (RunState.CANCELLED, "not needed")
    await released(house, run_id)
    assert house.machines.sandboxes == {}
    endpoint = house.engine.endpoint(run_id, 1)
    with pytest.raises(StaleEpoch):
        await house.engine.answer(Call(run_id, 1, "main", 9, "POST", "/perdure/v1/begin", {}, b"{}"), endpoint.token)


async def test_a_zombie_can_neither_write_nor_spend(house: Any, provider: Any) -> None:
    def program() -> Steps:
        yield approval()
        yield Ask("complete", {"result": 1})

    run_id = await house.start(program)
    await house.reaches(run_id, RunState.SUSPENDED)
    await house.engine.approve(run_id, None, approved=True)
    await house.ends(run_id)
    run_id = await house.start(program)
    await house.reaches(run_id, RunState.WAITING)
    await house.kill_machine(run_id)
    await house.reaches(run_id, RunState.RECOVERING, RunState.STARTING, RunState.RUNNING)
    before = len(await house.entries(run_id, "emit"))
    for path, body in (
        ("/perdure/v1/emit", b'{"name": "x"}'),
        (CHAT, b'{"messages": [{"role": "user", "content": "x"}]}'),
    ):
        with pytest.raises(StaleEpoch):
            call = Call(run_id, 1, "main", 5, "POST", path, {}, body)
            await house.engine.answer(call, house.engine.endpoint(run_id, 1).token)
    with pytest.raises(StaleEpoch, match="wrong token"):
        await house.engine.answer(Call(run_id, 2, "main", 5, "POST", CHAT, {}, b"{}"), "guessed")
    assert (len(await house.entries(run_id, "emit")), provider.requests) == (before, 0)


@pytest.mark.parametrize("policy", ["fork", "fail"])
async def test_a_program_that_goes_another_way_diverges(house: Any, provider: Any, policy: str) -> None:
    lives = 0

    def program() -> Steps:
        nonlocal lives
        lives += 1
        yield Ask("emit", {"name": "same"})
        answer = yield chat(f"life {min(lives, 2)}")
        verdict = yield approval("Publish?")
        text = answer.value["choices"][0]["message"]["content"]
        yield Ask("complete", {"result": [text, verdict.value["by"]]})

    house.settings = type(house.settings)(idle_grace_s=60, backoff_s=0.02)
    await house.down()
    await house.up()
    run_id = await house.start(program, on_divergence=policy)
    await house.reaches(run_id, RunState.WAITING)
    await house.kill_machine(run_id)
    if policy == "fail":
        info = await house.ends(run_id)
        assert (info.state, info.error["code"]) == (RunState.FAILED, "diverged")
        sides = info.error["details"]
        assert sides["recorded"]["payload"]["messages"][0]["content"] == "life 1"
        assert sides["asked"]["body"]["messages"][0]["content"] == "life 2"
        return
    await house.reaches(run_id, RunState.RECOVERING, RunState.STARTING, RunState.RUNNING)
    info = await house.reaches(run_id, RunState.WAITING)
    assert info.branch == 2
    assert len(info.waits) == 1
    await house.engine.approve(run_id, None, approved=True, by="ann")
    info = await house.ends(run_id)
    assert info.result == ["answer to life 2", "ann"]
    entries = await house.entries(run_id)
    assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
    assert [entry.kind for entry in entries].count("wait.started") == 1
    old = await house.context.read(run_id, branch=1)
    assert old[-1].kind == "run.running"
    assert any(entry.kind == "wait.started" for entry in old)
    assert len(await house.entries(run_id, "emit")) == 1
    await house.context.verify(run_id)


@pytest.mark.parametrize(
    ("on_doubt", "approved", "effects_wanted"),
    [("retry", None, 2), ("ask", True, 2), ("ask", False, 1), ("fail", None, 1)],
)
async def test_a_step_in_doubt(house: Any, on_doubt: str, approved: bool | None, effects_wanted: int) -> None:
    effects: list[int] = []
    keys: list[str] = []
    reached = asyncio.Event()
    lives = 0

    def program() -> Steps:
        nonlocal lives
        lives += 1
        asked = yield Ask("step", {"name": "pay", "on_doubt": on_doubt}, at=0)
        value = asked.value
        if value["status"] == "run":
            keys.append(value["idempotency_key"])
            yield Effect(lambda: effects.append(1))
            if lives == 1:
                reached.set()
                yield Ask("wait", {"kind": "signal", "name": "never"}, lane="other")
            ended = yield Ask("step/end", {"result": "paid"}, at=0)
            value = {"status": "done", **ended.value}
        yield Ask("complete", {"result": value}, at=1)

    run_id = await house.start(program)
    await asyncio.wait_for(reached.wait(), 10)
    await house.reaches(run_id, RunState.WAITING)
    await house.kill_machine(run_id)
    if on_doubt == "ask":
        await house.reaches(run_id, RunState.RECOVERING, RunState.STARTING)
        await house.reaches(run_id, RunState.WAITING)
        doubts = [wait for wait in (await house.engine.info(run_id)).waits if wait["kind"] == "doubt"]
        assert "may have taken effect" in doubts[0]["name"]
        await house.engine.approve(run_id, None, approved=approved, by="ann")
    info = await house.ends(run_id)
    assert len(effects) == effects_wanted
    assert len(set(keys)) == 1
    if effects_wanted == 2:
        assert info.result["result"] == "paid"
    else:
        assert (info.result["status"], info.result["error"]["type"]) == ("failed", "InDoubt")


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


async def test_what_a_program_wrote_is_kept_after_its_end(house: Any) -> None:
    def fails() -> Steps:
        yield Ask("fail", {"error": {"message": "no"}})

    run_id = await house.start(fails)
    await house.ends(run_id)
    await released(house, run_id)
    assert house.machines.sandboxes == {}
    assert await house.engine.output(run_id, 1000) == b"output\n"
    assert await house.engine.output(run_id, 3) == b"ut\n"


async def test_another_way_of_one_lane_leaves_signals_and_other_lanes_as_they_are(house: Any, provider: Any) -> None:
    life = 1
    effects: list[int] = []

    def program() -> Steps:
        yield chat("the same")
        yield chat(f"life {life}")
        asked = yield Ask("step", {"name": "pay", "on_doubt": "fail"}, lane="other", at=0)
        if asked.value["status"] == "run":
            yield Effect(lambda: effects.append(1))
            yield Ask("step/end", {"result": "paid"}, lane="other", at=0)
        turn = yield Ask(CHAT, chat("beside").body, lane="other", at=1)
        first = yield Ask("wait", {"kind": "signal", "name": "data"})
        second = yield Ask("wait", {"kind": "signal", "name": "data"})
        if life == 1:
            yield approval("Only in the first life?")
        text = turn.value["choices"][0]["message"]["content"]
        yield Ask("complete", {"result": [asked.value["status"], text, first.value["value"], second.value["value"]]})

    run_id = await house.start(program)
    await house.reaches(run_id, RunState.SUSPENDED)
    for number in (1, 2):
        await house.engine.signal(run_id, "data", number)
    run = house.engine._runs[run_id]
    assert await run.until(lambda: any(wait.kind == "approval" for wait in run.record.waits.open), 10)
    await house.reaches(run_id, RunState.SUSPENDED)
    house.machines.sandboxes.clear()
    life = 2
    await house.engine.approve(run_id, None, approved=True)
    assert (await house.ends(run_id)).result == ["done", "answer to beside", 1, 2]
    assert effects == [1]
    assert provider.requests == 4  # "the same", both lives, "beside" once
    info = await house.engine.info(run_id)
    assert (info.branch, info.turns_asked) == (2, 4)
    (diverged,) = await house.entries(run_id, "diverged")
    assert diverged.payload["carried"] == len(
        [e for e in await house.entries(run_id) if e.seq > diverged.seq and e.time == diverged.time]
    )
    await house.context.verify(run_id)


async def test_the_first_end_of_a_step_is_its_end(house: Any) -> None:
    def program() -> Steps:
        yield Ask("step", {"name": "s", "on_doubt": "ask"}, at=0)
        yield Ask("step/end", {"result": 1}, at=0)
        again = yield Ask("step/end", {"result": 2}, at=0)
        begun = yield Ask("step", {"name": "s", "on_doubt": "ask"}, at=0)
        yield Ask("complete", {"result": [again.value, begun.value]}, at=1)

    info = await house.ends(await house.start(program))
    assert info.result == [{"result": 1}, {"status": "done", "result": 1}]


async def test_messages_are_those_before_the_call_was_first_asked(house: Any) -> None:
    def program() -> Steps:
        yield Ask("message", {"message": {"role": "user", "content": "a"}})
        one = yield Ask("messages", {})
        yield Ask("message", {"message": {"role": "user", "content": "b"}})
        again = yield Ask("messages", {}, at=1)
        two = yield Ask("messages", {})
        yield Ask("complete", {"result": [len(x.value["messages"]) for x in (one, again, two)]})

    assert (await house.ends(await house.start(program))).result == [1, 1, 2]


@pytest.mark.parametrize(
    ("ask", "status", "words"),
    [
        (Ask("nothing", {}), 404, "no such call"),
        (Ask("wait", {"kind": "sometimes"}), 400, "no such kind of wait"),
        (Ask("wait", {"kind": "time"}), 400, "seconds"),
        (Ask("wait", {"kind": "time", "seconds": -1}), 400, "number of seconds"),
        (Ask("wait", {"kind": "signal"}), 400, "name"),
        (Ask("step", {"name": "x", "on_doubt": "perhaps"}), 400, "on_doubt"),
        (Ask("step", {}), 400, "name"),
        (Ask("step/end", {"result": 1}), 409, "no step was begun"),
        (Ask("message", {"message": "x"}), 400, "object"),
        (Ask("emit", [1]), 400, "not a JSON object"),
    ],
)
async def test_wrong_calls_are_the_guests_error_and_the_run_goes_on(
    house: Any, ask: Ask, status: int, words: str
) -> None:
    def program() -> Steps:
        said = yield ask
        yield Ask("complete", {"result": [said.status, said.value["error"]]})

    got, error = (await house.ends(await house.start(program))).result
    assert got == status
    assert words in error["message"]


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


async def test_the_same_key_starts_once(house: Any) -> None:
    from perdure.runs.record import StartRequest

    def waits() -> Steps:
        yield approval()

    run_id = await house.start(waits, key="owls-1")
    again = StartRequest(image="image", command=["x"], key="owls-1")
    info, is_new = await house.engine.start(again)
    assert (info.id, is_new) == (run_id, False)
    await house.engine.cancel(run_id)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source": ""}, "either an agent or a command"),
        ({"command": ["x"]}, "either an agent or a command"),
        ({"image": ""}, "names no image"),
        ({"file": "../x.py"}, "not the name of a Python file"),
        ({"function": "a b"}, "not the name of a function"),
        ({"memory_mib": -1}, "memory_mib is negative"),
    ],
)
async def test_wrong_requests_start_nothing(house: Any, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidValue, match=words):
        await house.start(nothing, **changes)
    assert await house.engine.runs() == []


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


async def test_a_node_that_is_away_does_not_fail_a_start(house: Any) -> None:
    tries = 0

    async def away() -> None:
        nonlocal tries
        tries += 1
        if tries <= 9:
            raise Unavailable("the node is away")

    house.machines.before["start"] = away

    def program() -> Steps:
        yield Ask("complete", {"result": 1})

    run_id = await house.start(program)
    assert (await house.ends(run_id)).result == 1
    assert tries == 10


async def test_a_deadline_that_cannot_be_written_passes_later(house: Any) -> None:
    real, failed = house.log.append, 0

    async def append(*args: Any, **kwargs: Any) -> Any:
        nonlocal failed
        if any(entry.kind == "wait.completed" for entry in args[1]) and failed < 2:
            failed += 1
            raise NoSpace("the disk is full")
        return await real(*args, **kwargs)

    def program() -> Steps:
        yield Ask("wait", {"kind": "time", "seconds": 0.2})
        yield Ask("complete", {"result": 1})

    house.log.append = append
    run_id = await house.start(program)
    assert (await house.ends(run_id)).result == 1
    assert failed == 2


async def test_a_cancelled_run_does_not_spend(house: Any, provider: Any) -> None:
    provider.hold = asyncio.Event()

    def program() -> Steps:
        yield chat("one", stream=True)
        yield Ask("complete", {"result": 1})

    run_id = await house.start(program)
    await asyncio.wait_for(provider.reached.wait(), 10)
    assert house.gateway.is_in_flight(run_id)
    await house.engine.cancel(run_id)
    await released(house, run_id)
    assert not house.gateway.is_in_flight(run_id)
    provider.hold.set()
