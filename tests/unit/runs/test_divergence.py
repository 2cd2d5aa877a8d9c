"""A program that goes another way than its log: a new branch, or its failure."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure.model import RunState
from perdure.testing.clock import FakeClock
from perdure.testing.house import until
from perdure.testing.machines import CHAT, Ask, Effect
from perdure.testing.programs import Steps, approval, chat


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
    assert info.spent.calls == 4  # the copy of "beside" costs nothing
    (diverged,) = await house.entries(run_id, "diverged")
    assert diverged.payload["carried"] == len(
        [e for e in await house.entries(run_id) if e.seq > diverged.seq and e.time == diverged.time]
    )
    await house.context.verify(run_id)


@pytest.mark.parametrize("key", [None, "back"])
async def test_another_way_of_one_lane_leaves_others_the_time_that_a_rewind_gave_them(house: Any, key: str) -> None:
    life = 1

    def program() -> Steps:
        yield chat(f"life {life}")
        verdict = yield Ask("wait", {"kind": "approval", "prompt": "?", "timeout_s": 100}, lane="other", at=0)
        yield Ask("complete", {"result": verdict.value["approved"]})

    clock = await house.at(FakeClock())
    run_id = await house.start(program)
    await house.waits(run_id, "approval")
    clock.move(90)
    life = 2
    info = await house.engine.rewind(run_id, (await house.entries(run_id, "wait.started"))[0].seq, key=key)
    (given,) = info.waits
    run = house.engine._runs[run_id]
    assert await run.until(lambda: run.branch == 3, 10)
    info = await house.engine.info(run_id)
    assert await house.entries(run_id, "diverged")
    assert [wait["until"] for wait in info.waits] == [given["until"]]
    (rewound,) = await house.entries(run_id, "rewound")
    assert rewound.payload["carried"] and rewound.key is None
    await house.engine.approve(run_id, None, approved=True)
    assert (await house.ends(run_id)).result is True


async def test_a_run_that_goes_on_live_overrules_what_its_lane_had(house: Any, provider: Any) -> None:
    life = 1
    effects: list[str] = []

    def program() -> Steps:
        yield chat("the same")
        turn = yield chat(f"life {life}")
        asked = yield Ask("step", {"name": "pay", "on_doubt": "fail"})
        if asked.value["status"] == "run":
            yield Effect(lambda: effects.append(f"life {life}"))
            yield Ask("step/end", {"result": f"paid in life {life}"}, at=2)
        beside = yield Ask(CHAT, chat("beside").body, lane="other")
        yield Ask("message", {"message": {"role": "user", "content": f"life {life}"}}, at=3)
        read = yield Ask("messages", {}, at=4)
        verdict = yield Ask("wait", {"kind": "approval", "prompt": "Publish?"}, at=5)
        texts = [one.value["choices"][0]["message"]["content"] for one in (turn, beside)]
        said = [message["content"] for message in read.value["messages"]]
        yield Ask("complete", {"result": [*texts, said, verdict.value["by"]]}, at=6)

    run_id = await house.start(program, on_divergence="live")
    await house.reaches(run_id, RunState.SUSPENDED)
    before = await house.entries(run_id)
    house.machines.sandboxes.clear()
    life = 2
    house.machines.program = program
    await house.engine.signal(run_id, "wakes", None)
    run = house.engine._runs[run_id]
    (older,) = run.record.waits.open
    await house.engine.approve(run_id, None, approved=True, by="eve")  # about what life 1 had written
    assert await run.until(lambda: [w.id for w in run.record.waits.open] not in ([], [older.id]), 10)
    await house.reaches(run_id, RunState.WAITING, RunState.SUSPENDED)
    await house.engine.approve(run_id, None, approved=True, by="ann")
    info = await house.ends(run_id)
    assert info.result == ["answer to life 2", "answer to beside", ["life 2"], "ann"]
    assert effects == ["life 1", "life 2"]  # what comes after is another one
    assert provider.requests == 4  # "the same" and "beside" once
    assert info.branch == 1
    entries = await house.entries(run_id)
    assert entries[: len(before)] == before
    (diverged,) = [entry for entry in entries if entry.kind == "diverged"]
    assert (diverged.payload["policy"], diverged.payload["key"]) == ("live", "main/1")
    assert [entry.key for entry in entries if entry.kind == "overruled"] == [f"main/{n}" for n in (1, 2, 3, 4, 5)]
    await house.context.verify(run_id)


async def test_an_open_wait_that_is_overruled_is_withdrawn(house: Any, provider: Any) -> None:
    life = 1

    def program() -> Steps:
        yield chat(f"life {life}")
        verdict = yield Ask("wait", {"kind": "approval", "prompt": f"Publish {life}?"}, at=1)
        yield Ask("complete", {"result": verdict.value["by"]}, at=2)

    house.settings = type(house.settings)(idle_grace_s=60, backoff_s=0.02)
    await house.down()
    await house.up()
    run_id = await house.start(program, on_divergence="live")
    await house.reaches(run_id, RunState.WAITING)
    life = 2
    await house.kill_machine(run_id)
    run = house.engine._runs[run_id]
    assert await run.until(lambda: [wait.name for wait in run.record.waits.open] == ["Publish 2?"], 10)
    await house.engine.approve(run_id, None, approved=True, by="ann")
    assert (await house.ends(run_id)).result == "ann"
    outcomes = [entry.payload["outcome"] for entry in await house.entries(run_id, "wait.completed")]
    assert outcomes == ["withdrawn", "completed"]
    fork = (await house.engine.fork(run_id))[0]  # the forks know what was overruled, too
    assert (await house.ends(fork.id)).result == "ann"
    assert provider.requests == 2


@pytest.mark.parametrize("way", ["fork", "live", "late"])
async def test_another_question_does_not_get_the_answer_that_was_on_its_way(
    house: Any, provider: Any, way: str
) -> None:
    """late: what answers the first one is kept right after the run went on live."""
    provider.silence = asyncio.Event()
    asks, real = "one", house.log.append

    def program() -> Steps:
        answer = yield chat(asks)
        yield approval()
        yield Ask("complete", {"result": answer.value["choices"][0]["message"]["content"]})

    async def append(run_id: str, entries: Any, **how: Any) -> Any:
        found = await real(run_id, entries, **how)
        if way == "late" and any(entry.kind == "diverged" for entry in entries):
            provider.silence.set()
            await until(lambda: house.entries(run_id, "model.committed"))
        return found

    async def asked(times: int) -> bool:
        return provider.requests >= times

    house.log.append = append
    run_id = await house.start(program, on_divergence="fork" if way == "fork" else "live")
    await until(lambda: asked(1))
    asks = "two"
    await house.kill_machine(run_id)
    if way != "late":
        await until(lambda: asked(2))
        provider.silence.set()
    await house.waits(run_id, "approval")
    await house.restart()  # and from the log it is the same
    await house.kill_machine(run_id)
    await house.waits(run_id, "approval")
    await house.engine.approve(run_id, None, approved=True)
    assert (await house.ends(run_id)).result == "answer to two"
    assert provider.requests == 2
