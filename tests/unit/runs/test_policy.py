"""Suspends while a model thinks, and checkpoints: after turns, by time, wished for; what recovery makes of them."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from perdure.errors import Conflict, InvalidValue, MachineFailed, SnapshotInvalid
from perdure.model import RunState
from perdure.runs.policy import NEVER_S, Policy
from perdure.testing.machines import Ask
from perdure.testing.programs import Steps, approval, chat

DEADLINE_S = 20.0
QUICK = Policy(think_grace_s=0.03)


async def until_done(house: Any, operation: str, count: int) -> None:
    """Wait until machines did it so often."""
    run = next(iter(house.engine._runs.values()))
    assert await run.until(lambda: house.machines.done.count(operation) >= count, DEADLINE_S), house.machines.done


@pytest.mark.parametrize("stream", [True, False])
async def test_a_machine_sleeps_while_a_model_thinks_and_hears_its_answer(
    house: Any, provider: Any, stream: bool
) -> None:
    provider.silence = asyncio.Event()

    def program() -> Steps:
        said = yield chat("a long question", stream=stream)
        yield Ask("complete", {"result": said.value})

    run_id = await house.start(program, policy=QUICK)
    info = await house.reaches(run_id, RunState.SUSPENDED)
    assert (info.suspends, info.waits) == (1, [])
    provider.silence.set()
    ended = await house.ends(run_id)
    assert "answer" in str(ended.result)
    assert (provider.requests, ended.turns_asked, ended.recoveries) == (1, 1, 0)
    assert ended.turns_replayed == 0  # it is the first time that its program hears it
    assert house.machines.done.count("resume") == 1
    assert ended.suspended_s > 0


async def test_an_answer_that_was_slept_for_counts_as_replayed_once_its_machine_is_lost(
    house: Any, provider: Any
) -> None:
    provider.silence = asyncio.Event()

    def program() -> Steps:
        yield chat("a long question")
        yield Ask("emit", {"name": "heard", "value": 1})
        yield Ask("wait", {"kind": "signal", "name": "go"})
        yield Ask("complete", {"result": 1})

    run_id = await house.start(program, policy=msgspec.structs.replace(QUICK, idle_grace_s=1e9))
    await house.reaches(run_id, RunState.SUSPENDED)
    provider.silence.set()
    await house.waits(run_id, "signal")
    assert (await house.engine.info(run_id)).turns_replayed == 0
    await house.kill_machine(run_id)  # and goes on from the snapshot of before the answer
    await house.engine.signal(run_id, "go", None)
    ended = await house.ends(run_id)
    assert (ended.turns_asked, ended.turns_replayed, provider.requests) == (1, 1, 1)


async def test_a_server_that_ends_while_a_model_thinks_asks_again(house: Any, provider: Any) -> None:
    provider.silence = asyncio.Event()

    def program() -> Steps:
        said = yield chat("question")
        yield Ask("complete", {"result": said.status})

    run_id = await house.start(program, policy=QUICK)
    await house.reaches(run_id, RunState.SUSPENDED)
    await house.down()
    provider.silence.set()
    await house.up()
    info = await house.ends(run_id)
    assert (info.result, provider.requests) == (200, 2)


async def test_a_machine_wakes_whatever_breaks_its_call_while_it_sleeps(house: Any, provider: Any) -> None:
    provider.silence = asyncio.Event()

    def program() -> Steps:
        said = yield chat("question")
        yield Ask("complete", {"result": said.status})

    real, broken = house.gateway.answer, asyncio.Event()

    async def answer(call: Any, branch: int, **how: Any) -> Any:
        if house.engine._runs[call.run_id].state is RunState.SUSPENDED and not broken.is_set():
            broken.set()
            raise ValueError("nobody thought of this")
        return await real(call, branch, **how)

    house.gateway.answer = answer
    run_id = await house.start(program, policy=QUICK)
    await asyncio.wait_for(broken.wait(), DEADLINE_S)
    provider.silence.set()
    assert (await house.ends(run_id)).result == 200
    assert provider.requests == 1


async def test_a_suspend_that_fails_while_a_model_thinks_loses_nothing(house: Any, provider: Any) -> None:
    provider.silence, failed = asyncio.Event(), asyncio.Event()

    async def fail() -> None:
        provider.silence.set()
        failed.set()
        raise MachineFailed("no space in the store")

    house.machines.before["suspend"] = fail

    def program() -> Steps:
        said = yield chat("question", stream=True)
        yield Ask("complete", {"result": said.status})

    run_id = await house.start(program, policy=QUICK)
    async with asyncio.timeout(DEADLINE_S):
        await failed.wait()
    info = await house.ends(run_id)
    assert (info.result, info.suspends, provider.requests) == (200, 0, 1)


async def test_a_long_grace_keeps_a_machine_warm(house: Any) -> None:
    def program() -> Steps:
        yield approval()
        yield Ask("complete", {"result": 1})

    run_id = await house.start(program, policy=Policy(idle_grace_s=NEVER_S))
    await house.reaches(run_id, RunState.WAITING)
    run = house.engine._runs[run_id]
    assert await run.until(run.idle, DEADLINE_S)
    await house.engine.approve(run_id, None, approved=True)
    await house.ends(run_id)
    assert "suspend" not in house.machines.done


async def test_checkpoints_after_turns_and_recovery_from_the_newest(house: Any, provider: Any) -> None:
    def program() -> Steps:
        for n in range(4):
            yield chat(f"question {n}")
            yield Ask("wait", {"kind": "signal", "name": f"go{n}"})
        yield Ask("complete", {"result": "done"})

    run_id = await house.start(program, policy=Policy(idle_grace_s=NEVER_S, checkpoint_turns=2))
    for n in range(4):
        await house.engine.signal(run_id, f"go{n}", None)
        if n == 1:
            await until_done(house, "checkpoint", 1)
            await house.kill_machine(run_id)
    info = await house.ends(run_id)
    assert info.result == "done"
    assert (info.recoveries, provider.requests) == (1, 4)
    assert house.machines.done.count("checkpoint") == 2
    assert house.machines.done.count("start") == 1  # it went on from the checkpoint
    entries = await house.entries(run_id, "snapshot")
    at = [entry.payload["snapshot"]["position"]["seq"] for entry in entries]
    assert all(entry.seq > seq for entry, seq in zip(entries, at, strict=True))
    assert [kept["seq"] for kept in info.snapshots] == at


async def test_checkpoints_by_time_count_only_what_the_program_ran(house: Any) -> None:
    go = asyncio.Event()

    def program() -> Steps:
        yield Ask("wait", {"kind": "signal", "name": "go"})
        while not go.is_set():
            yield Ask("emit", {"name": "still"})
        yield Ask("complete", {"result": 1})

    run_id = await house.start(program, policy=Policy(idle_grace_s=NEVER_S, checkpoint_s=0.05))
    await house.reaches(run_id, RunState.WAITING)
    run = house.engine._runs[run_id]
    assert run.activity._running_since is None  # the clock stands while it waits
    await house.engine.signal(run_id, "go", None)
    await until_done(house, "checkpoint", 2)
    go.set()
    assert (await house.ends(run_id)).result == 1


async def test_nothing_is_answered_while_a_checkpoint_is_taken(house: Any) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        begun.set()
        await go_on.wait()

    house.machines.before["checkpoint"] = hold

    def program() -> Steps:
        yield Ask("wait", {"kind": "signal", "name": "go"})
        yield Ask("emit", {"name": "after"})
        yield Ask("complete", {"result": 1})

    run_id = await house.start(program, policy=Policy(idle_grace_s=NEVER_S))
    await house.reaches(run_id, RunState.WAITING)
    taking = asyncio.create_task(house.engine.checkpoint(run_id))
    async with asyncio.timeout(DEADLINE_S):
        await begun.wait()
    before = (await house.engine.info(run_id)).seq
    await house.engine.signal(run_id, "go", None)  # from outside: it is written, and not told yet
    assert not await house.entries(run_id, "emit")
    go_on.set()
    snapshot = await taking
    assert snapshot.position.seq == before
    await house.ends(run_id)
    emitted = (await house.entries(run_id, "emit"))[0].seq
    assert (await house.entries(run_id, "snapshot"))[0].seq < emitted


async def test_a_program_checkpoints_itself_once(house: Any) -> None:
    effects: list[str] = []

    def program() -> Steps:
        first = yield Ask("checkpoint", {})
        yield Ask("wait", {"kind": "signal", "name": "go"})
        effects.append("went on")
        yield Ask("complete", {"result": first.value})

    run_id = await house.start(program, policy=Policy(idle_grace_s=NEVER_S))
    await house.reaches(run_id, RunState.WAITING)
    digest = (await house.engine.info(run_id)).snapshot.digest
    await house.kill_machine(run_id)
    await house.engine.signal(run_id, "go", None)
    info = await house.ends(run_id)
    assert info.result["snapshot"] == digest
    assert house.machines.done == ["start", "checkpoint", "resume"]  # the call was answered from the log


async def test_no_checkpoint_within_a_step(house: Any) -> None:
    def program() -> Steps:
        yield Ask("step", {"name": "pay"}, at=0)
        refused = yield Ask("checkpoint", {}, lane="other")
        yield Ask("step/end", {"result": "paid"}, at=0)
        taken = yield Ask("checkpoint", {}, lane="other", at=1)
        yield Ask("complete", {"result": [refused.value["error"]["code"], "snapshot" in taken.value]})

    run_id = await house.start(program)
    assert (await house.ends(run_id)).result == ["conflict", True]


async def test_an_older_snapshot_is_next_where_the_newest_is_damaged(house: Any, provider: Any) -> None:
    def program() -> Steps:
        for n in range(2):
            yield chat(f"question {n}")
            yield Ask("wait", {"kind": "signal", "name": f"go{n}"})
        yield Ask("complete", {"result": "done"})

    run_id = await house.start(program, policy=Policy(idle_grace_s=NEVER_S, checkpoint_turns=1))
    await until_done(house, "checkpoint", 1)
    await house.engine.signal(run_id, "go0", None)
    await until_done(house, "checkpoint", 2)
    real, damaged, restored = house.machines.resume, (await house.entries(run_id, "snapshot"))[-1], []

    async def resume(sandbox_id: str, digest: str, calls: Any) -> None:
        if digest == damaged.payload["snapshot"]["digest"]:
            raise SnapshotInvalid("a layer is damaged")
        restored.append(digest)
        await real(sandbox_id, digest, calls)

    house.machines.resume = resume
    await house.kill_machine(run_id)
    await house.engine.signal(run_id, "go1", None)
    info = await house.ends(run_id)
    assert (info.result, provider.requests, house.machines.done.count("start")) == ("done", 2, 1)
    assert len(restored) == 1
    lost = [e.payload for e in await house.entries(run_id, "note") if "snapshot_lost" in e.payload]
    assert lost[0]["error"]["message"] == "a layer is damaged"


async def test_old_snapshots_are_given_up_unless_somebody_keeps_them(house: Any) -> None:
    def program() -> Steps:
        for n in range(5):
            yield chat(f"question {n}")
            yield Ask("wait", {"kind": "signal", "name": f"go{n}"})
        yield Ask("complete", {"result": "done"})

    policy = Policy(idle_grace_s=NEVER_S, checkpoint_turns=1, snapshots_kept=2)
    run_id = await house.start(program, policy=policy)
    await until_done(house, "checkpoint", 1)
    kept = await house.engine.checkpoint(run_id, keep=True)
    for n in range(4):
        await house.engine.signal(run_id, f"go{n}", None)
        await until_done(house, "checkpoint", n + 3)
    await until_done(house, "forget", 3)
    info = await house.engine.info(run_id)
    assert len(info.snapshots) == 3
    assert info.snapshots[0]["digest"] == kept.digest
    there = house.machines.sandboxes[info.sandbox_id].captures
    assert set(there) == {one["digest"] for one in info.snapshots}
    assert info.stored_bytes == 6000  # by all that there ever were


async def test_a_snapshot_that_is_gone_keeps_no_other_from_being_given_up(house: Any) -> None:
    def program() -> Steps:
        yield Ask("wait", {"kind": "signal", "name": "go"})

    gate = asyncio.Event()
    house.machines.before["forget"] = gate.wait
    run_id = await house.start(program, policy=Policy(idle_grace_s=NEVER_S, snapshots_kept=1))
    await house.reaches(run_id, RunState.WAITING)
    made = [(await house.engine.checkpoint(run_id)).digest for _ in range(5)]
    there = house.machines.sandboxes[house.sandbox(run_id)].captures
    del there[made[1]]
    gate.set()
    await until_done(house, "forget", 3)
    assert set(there) == {made[-1]}


async def test_a_snapshot_that_is_being_read_is_given_up_later_and_keeps_no_other(house: Any) -> None:
    def program() -> Steps:
        yield Ask("wait", {"kind": "signal", "name": "go"})

    asked = 0

    async def reads() -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise Conflict("the snapshot is being read")

    house.machines.before["forget"] = reads
    run_id = await house.start(program, policy=Policy(idle_grace_s=NEVER_S, snapshots_kept=1))
    await house.reaches(run_id, RunState.WAITING)
    made = [(await house.engine.checkpoint(run_id)).digest for _ in range(2)]
    await until_done(house, "forget", 1)  # nothing is captured any more
    there = house.machines.sandboxes[house.sandbox(run_id)].captures
    assert set(there) == {made[-1]}
    assert asked == 2


async def test_a_checkpoint_that_fails_is_written_down_and_the_run_goes_on(house: Any) -> None:
    async def fail() -> None:
        raise MachineFailed("no space in the store")

    house.machines.before["checkpoint"] = fail

    def program() -> Steps:
        yield approval()
        yield Ask("complete", {"result": 1})

    run_id = await house.start(program, policy=Policy(idle_grace_s=NEVER_S))
    await house.reaches(run_id, RunState.WAITING)
    with pytest.raises(MachineFailed, match="no space"):
        await house.engine.checkpoint(run_id)
    await house.engine.approve(run_id, None, approved=True)
    assert (await house.ends(run_id)).result == 1
    notes = await house.entries(run_id, "note")
    assert notes[0].payload["checkpoint_failed"]["message"] == "no space in the store"


async def test_a_run_that_sleeps_or_has_ended(house: Any) -> None:
    def program() -> Steps:
        yield approval()
        yield Ask("complete", {"result": 1})

    run_id = await house.start(program)
    info = await house.reaches(run_id, RunState.SUSPENDED)
    assert (await house.engine.checkpoint(run_id, keep=True)).digest == info.snapshot.digest
    assert (await house.engine.info(run_id)).snapshots[0]["keep"]
    assert "checkpoint" not in house.machines.done
    await house.engine.approve(run_id, None, approved=True)
    await house.ends(run_id)
    with pytest.raises(Conflict, match="has ended"):
        await house.engine.checkpoint(run_id)


async def test_policies_that_are_none(house: Any) -> None:
    for wrong in (Policy(idle_grace_s=-1), Policy(checkpoint_turns=-2), Policy(think_grace_s=1e11)):
        with pytest.raises(InvalidValue, match="policy: "):
            await house.start(lambda: iter(()), policy=wrong)
    assert msgspec.json.decode(b'{"idle_grace_s": 5}', type=Policy).over(Policy(think_grace_s=1)).think_grace_s == 1


async def test_a_program_signals_another_run_once(house: Any) -> None:
    def waits() -> Steps:
        came = yield Ask("wait", {"kind": "signal", "name": "go"})
        yield Ask("wait", {"kind": "signal", "name": "end"})
        yield Ask("complete", {"result": came.value["value"]})

    def sends() -> Steps:
        sent = yield Ask("signal", {"run": "other", "name": "go", "value": 7})
        yield Ask("wait", {"kind": "signal", "name": "go"})
        refused = yield Ask("signal", {"run": "nobody", "name": "go"})
        yield Ask("complete", {"result": [sent.value["run_id"], refused.value["error"]["code"]]})

    other = await house.start(waits, name="other")
    await house.reaches(other, RunState.SUSPENDED, RunState.WAITING)
    run_id = await house.start(sends, policy=Policy(idle_grace_s=NEVER_S))
    await house.reaches(run_id, RunState.WAITING)
    await house.kill_machine(run_id)  # from its start again: it asks again, and is answered from the log
    await house.engine.signal(run_id, "go", None)
    assert (await house.ends(run_id)).result == [other, "not-found"]
    await house.engine.signal(other, "end", None)
    assert (await house.ends(other)).result == 7
    assert len([e for e in await house.entries(other, "signal") if e.payload["signal"]["name"] == "go"]) == 1


async def test_the_time_slept_is_the_sum_of_its_sleeps(house: Any) -> None:
    def program() -> Steps:
        for _ in range(6):
            yield approval()
        yield Ask("complete", {"result": 1})

    began = house.clock.time()
    run_id = await house.start(program)
    slept = [0.0]
    for n in range(1, 7):
        info = await house.reaches(run_id, RunState.SUSPENDED)
        assert info.suspends == n
        await house.engine.approve(run_id, None, approved=True)
        run = house.engine._runs[run_id]
        assert await run.until(lambda n=n, run=run: run.record.epoch > n, DEADLINE_S)
        slept.append(run.record.suspended_s)
    assert slept == sorted(slept)
    assert slept[-1] <= house.clock.time() - began


async def test_a_checkpoint_that_breaks_in_a_way_that_nobody_thought_of_is_tried_again(house: Any) -> None:
    left = 2

    async def breaks() -> None:
        nonlocal left
        left -= 1
        if left >= 0:
            raise OSError("broken pipe")

    def program() -> Steps:
        said = yield Ask("checkpoint", {"keep": True})
        yield Ask("complete", {"result": said.status})

    house.machines.before["checkpoint"] = breaks
    assert (await house.ends(await house.start(program))).result == 200
