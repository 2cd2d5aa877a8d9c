"""A run's end, of its own or by a cancel: what it leaves, and that nothing writes or spends after it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure.errors import StaleEpoch
from perdure.model import Call, RunState
from perdure.testing.machines import CHAT, Ask
from perdure.testing.programs import Steps, approval, chat


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
    await house.released(run_id)
    assert house.machines.sandboxes == {}


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


async def test_what_a_program_wrote_is_kept_after_its_end(house: Any) -> None:
    def fails() -> Steps:
        yield Ask("fail", {"error": {"message": "no"}})

    run_id = await house.start(fails)
    await house.ends(run_id)
    await house.released(run_id)
    assert house.machines.sandboxes == {}
    assert await house.engine.output(run_id, 1000) == b"output\n"
    assert await house.engine.output(run_id, 3) == b"ut\n"


async def test_cancel_ends_the_machine_and_fences_it(house: Any) -> None:
    def program() -> Steps:
        yield approval()

    run_id = await house.start(program)
    await house.reaches(run_id, RunState.WAITING, RunState.SUSPENDED)
    await house.engine.cancel(run_id, "not needed")
    info = await house.ends(run_id)
    assert (info.state, info.error["message"]) == (RunState.CANCELLED, "not needed")
    await house.released(run_id)
    assert house.machines.sandboxes == {}
    endpoint = house.engine.endpoint(run_id, 1)
    with pytest.raises(StaleEpoch):
        await house.engine.answer(Call(run_id, 1, "main", 9, "POST", "/perdure/v1/begin", {}, b"{}"), endpoint.token)


async def test_a_cancelled_run_does_not_spend(house: Any, provider: Any) -> None:
    provider.hold = asyncio.Event()

    def program() -> Steps:
        yield chat("one", stream=True)
        yield Ask("complete", {"result": 1})

    run_id = await house.start(program)
    await asyncio.wait_for(provider.reached.wait(), 10)
    assert house.gateway.is_in_flight(run_id)
    await house.engine.cancel(run_id)
    await house.released(run_id)
    assert not house.gateway.is_in_flight(run_id)
    provider.hold.set()


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
