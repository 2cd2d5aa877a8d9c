"""Child runs: started once, told once, and cancelled when nobody waits for them any more."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from perdure.errors import InvalidValue, NotFound
from perdure.model import Mount, MountKind, RunInfo, RunState
from perdure.runs import children
from perdure.runs.asking import Asking
from perdure.runs.fittings import Fittings
from perdure.runs.record import Record, StartRequest
from perdure.testing.clock import FakeClock
from perdure.testing.house import QUICK
from perdure.testing.machines import Ask
from perdure.testing.programs import Steps, approval


def child(function: str = "child", **more: Any) -> dict[str, Any]:
    return {"kind": "child", "function": function, **more}


def family(parent: Any, kid: Any) -> Any:
    """A program for all: which agent it is is what it was started as."""

    def program() -> Steps:
        begun = yield Ask("begin", {})
        is_parent = begun.value["agent"].endswith(":main")
        return (yield from (parent() if is_parent else kid(begun.value)))

    return program


def asks() -> Steps:
    said = yield Ask("wait", child(input={"topic": "owls"}, image="other", memory_mib=64))
    yield Ask("complete", {"result": said.value})


def answers(begun: Any) -> Steps:
    verdict = yield approval()
    yield Ask("complete", {"result": [begun["input"], verdict.value.get("by")]})


async def child_of(house: Any, run_id: str, index: int = 0) -> RunInfo:
    """Once the parent waits for it."""
    run = house.engine._runs[run_id]
    assert await run.until(lambda: len([wait for wait in run.record.waits.open if wait.child]) > index, 10)
    found = [wait.child for wait in run.record.waits.open if wait.child][index]
    info: RunInfo = await house.appears(found)
    return info


async def test_a_child_is_a_run_of_its_own_and_its_result_is_the_value(house: Any) -> None:
    run_id = await house.start(family(asks, answers), env={"A": "b"})
    kid = await child_of(house, run_id)
    assert (kid.parent, kid.agent, kid.image, kid.input) == (run_id, "agent.py:child", "other", {"topic": "owls"})
    await house.reaches(kid.id, RunState.SUSPENDED)
    await house.reaches(run_id, RunState.SUSPENDED)
    await house.engine.approve(kid.id, None, approved=True, by="ann")
    info = await house.ends(run_id)
    result = {"kind": "child", "run_id": kid.id, "result": [{"topic": "owls"}, "ann"], "timed_out": False}
    assert (info.result, info.children) == (result, [kid.id])
    (queued,) = await house.entries(kid.id, "run.queued")
    assert queued.payload["request"]["memory_mib"] == 64 and queued.payload["request"]["env"] == {"A": "b"}


async def test_a_parent_that_lives_again_starts_no_second_child(house: Any) -> None:
    run_id = await house.start(family(asks, answers))
    kid = await child_of(house, run_id)
    await house.reaches(run_id, RunState.SUSPENDED)
    house.machines.sandboxes = {i: s for i, s in house.machines.sandboxes.items() if s.spec.labels["run"] == kid.id}
    await house.down()
    await house.up()
    await house.reaches(kid.id, RunState.WAITING, RunState.SUSPENDED)
    await house.engine.approve(kid.id, None, approved=True, by="ann")
    assert (await house.ends(run_id)).result["run_id"] == kid.id
    assert len(await house.engine.runs()) == 2


async def test_a_child_that_fails_is_told_with_its_error(house: Any) -> None:
    def fails(begun: Any) -> Steps:
        yield Ask("fail", {"error": {"code": "agent-failed", "message": "no owls"}})

    run_id = await house.start(family(asks, fails))
    assert (await house.ends(run_id)).result["error"]["message"] == "no owls"


async def test_children_are_cancelled_with_their_parents(house: Any) -> None:
    run_id = await house.start(family(asks, answers))
    kid = await child_of(house, run_id)
    await house.reaches(kid.id, RunState.SUSPENDED)
    await house.engine.cancel(run_id, "enough")
    assert (await house.ends(run_id)).state is RunState.CANCELLED
    assert (await house.ends(kid.id)).state is RunState.CANCELLED


def lingers() -> Steps:
    """A child with a child: told that it is to end, it cleans up for ever."""
    yield Ask("wait", child("child"))
    yield Ask("wait", {"kind": "signal", "name": "never"})


@pytest.mark.parametrize("dies", [False, True])
async def test_whoever_ends_a_run_at_once_ends_its_children_at_once(house: Any, dies: bool) -> None:
    run_id = await house.start(lingers)
    kid = await child_of(house, run_id)
    grandkid = await child_of(house, kid.id)
    await house.reaches(grandkid.id, RunState.SUSPENDED, RunState.WAITING)
    if dies:
        house.engine._children._again = lambda *_: None  # the server ends right then
    await house.engine.cancel(run_id, clean_up_s=0)
    if dies:
        await house.restart()
    for one in (kid, grandkid):
        assert (await house.ends(one.id)).state is RunState.CANCELLED


async def test_children_have_the_time_to_clean_up_that_their_parent_has(house: Any) -> None:
    house.settings = dataclasses.replace(QUICK, clean_up_s=1e6)
    clock = await house.at(FakeClock())
    run_id = await house.start(lingers)
    kid = await child_of(house, run_id)
    grandkid = await child_of(house, kid.id)
    await house.waits(grandkid.id, "child")
    await house.engine.cancel(run_id, clean_up_s=300)
    ends = []
    for one in (run_id, kid.id, grandkid.id):
        run = house.engine._runs[one]
        assert await run.until(lambda run=run: run.record.ending is not None, 20)
        ends.append(run.record.ending.until)
    assert ends == [pytest.approx(clock.time() + 300, abs=1)] * 3


@pytest.mark.parametrize("is_fork_last", [True, False])
async def test_a_child_has_the_time_to_clean_up_that_who_waited_for_it_last_has(house: Any, is_fork_last: bool) -> None:
    house.settings = dataclasses.replace(QUICK, clean_up_s=1e6)
    clock = await house.at(FakeClock())
    run_id = await house.start(lingers)
    kid = await child_of(house, run_id)
    await house.waits(kid.id, "child")
    (fork,) = await house.engine.fork(run_id)
    await house.waits(fork.id, "child")
    first, last = (run_id, fork.id) if is_fork_last else (fork.id, run_id)
    await house.engine.cancel(first, clean_up_s=0)
    assert (await house.ends(first)).state is RunState.CANCELLED
    assert (await house.engine.info(kid.id)).ending is None  # the other one waits still
    await house.engine.cancel(last, clean_up_s=300)
    run = house.engine._runs[kid.id]
    assert await run.until(lambda: run.record.ending is not None, 20)
    assert run.record.ending.until == pytest.approx(clock.time() + 300, abs=1)


async def test_a_child_whose_parent_was_cancelled_in_a_dying_server_is_cancelled_by_the_next(house: Any) -> None:
    run_id = await house.start(family(asks, answers))
    kid = await child_of(house, run_id)
    await house.reaches(kid.id, RunState.SUSPENDED)
    house.engine._children._cancel = lambda child: asyncio.sleep(0)  # the server ends before it comes to that
    await house.engine.cancel(run_id, clean_up_s=0)
    await house.down()
    await house.up()
    assert (await house.ends(kid.id)).state is RunState.CANCELLED


async def test_a_child_that_a_server_had_not_started_is_started_by_the_next(house: Any) -> None:
    house.engine._children._ensure = lambda run_id, wait: asyncio.sleep(0)
    run_id = await house.start(family(asks, answers))
    await house.reaches(run_id, RunState.SUSPENDED)
    await house.down()
    await house.up()
    kid = await child_of(house, run_id)
    await house.reaches(kid.id, RunState.WAITING, RunState.SUSPENDED)
    await house.engine.approve(kid.id, None, approved=True, by="ann")
    assert (await house.ends(run_id)).result["result"][1] == "ann"


async def test_a_child_whose_end_a_server_had_not_told_is_told_by_the_next(house: Any) -> None:
    run_id = await house.start(family(asks, answers))
    kid = await child_of(house, run_id)
    await house.reaches(kid.id, RunState.SUSPENDED)
    house.engine._children._tell = lambda child: asyncio.sleep(0)
    await house.engine.approve(kid.id, None, approved=True, by="ann")
    await house.ends(kid.id)
    assert (await house.engine.info(run_id)).state is not RunState.COMPLETED
    await house.down()
    await house.up()
    assert (await house.ends(run_id)).result["result"][1] == "ann"


async def test_the_losing_children_of_a_set_are_cancelled(house: Any) -> None:
    def races() -> Steps:
        said = yield Ask("wait/set", {"mode": "any", "waits": [child(input=0), child(input=1)]})
        yield Ask("complete", {"result": [said.value["order"], said.value["waits"][1]["result"]]})

    run_id = await house.start(family(races, answers))
    slow, quick = [await child_of(house, run_id, index) for index in (0, 1)]
    await house.reaches(quick.id, RunState.WAITING, RunState.SUSPENDED)
    await house.engine.approve(quick.id, None, approved=True, by="ann")
    info = await house.ends(run_id)
    assert (info.result, info.children) == ([[1], [1, "ann"]], [slow.id, quick.id])
    assert (await house.ends(slow.id)).state is RunState.CANCELLED


async def test_a_child_that_nobody_waited_for_before_it_was_made_is_none(house: Any) -> None:
    def races() -> Steps:
        yield Ask("wait", {"kind": "signal", "name": "first"})
        said = yield Ask("wait/set", {"mode": "any", "waits": [{"kind": "signal", "name": "go"}, child(input=0)]})
        yield Ask("complete", {"result": said.value["order"]})

    run_id = await house.start(family(races, answers))
    for name in ("go", "first"):
        await house.engine.signal(run_id, name, None)
    info = await house.ends(run_id)
    assert (info.result, info.children) == ([0], [])
    named = (await house.entries(run_id, "wait.started"))[-1].payload["parts"][1]["child"]
    with pytest.raises(NotFound):
        await house.engine.info(named)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (child("a b"), "not the name of a function: 'a b'"),
        (child(memory_mib=-1), "memory_mib is negative"),
        (child(timeout=1), "unknown field 'timeout'"),
        (child(command=["sh"]), "either a function or a command"),
        (child(""), "either a function or a command"),
        (child("", command=[""]), "not a command: ''"),
        (child("", command=["a\0b"]), "not a command"),
        (child("", command="sh"), "Expected `array`, got `str`"),
        (child("", command=["sh"], input=1), "a command has no input"),
    ],
)
async def test_a_child_that_cannot_be(house: Any, asked: dict[str, Any], words: str) -> None:
    def program() -> Steps:
        said = yield Ask("wait", asked)
        yield Ask("complete", {"result": said.value["error"]["message"]})

    assert words in (await house.ends(await house.start(program))).result


async def test_an_agent_that_runs_itself_for_ever_is_stopped(house: Any) -> None:
    def program() -> Steps:
        said = yield Ask("wait", child("main"))
        if said.status >= 400:
            yield Ask("fail", {"error": {"message": said.value["error"]["message"]}})
        yield Ask("complete", {"result": said.value.get("result") or said.value["error"]["message"]})

    info = await house.ends(await house.start(program))
    assert "16 levels deep" in info.result
    assert len(await house.engine.runs()) == 17


async def test_a_child_that_somebody_took_back_goes_on_without_its_parent(house: Any) -> None:
    def parent() -> Steps:
        yield Ask("wait", child())
        yield approval()
        yield Ask("complete", {"result": 1})

    run_id = await house.start(family(parent, answers))
    kid = await child_of(house, run_id)
    await house.reaches(kid.id, RunState.SUSPENDED)
    at = (await house.entries(kid.id, "run.running"))[0].seq
    await house.engine.approve(kid.id, None, approved=True)
    await house.ends(kid.id)
    await house.reaches(run_id, RunState.SUSPENDED)
    await house.engine.rewind(kid.id, at)
    await house.reaches(kid.id, RunState.SUSPENDED)
    await house.restart()
    await house.reaches(kid.id, RunState.SUSPENDED)
    await house.engine.approve(kid.id, None, approved=True)
    assert (await house.ends(kid.id)).state is RunState.COMPLETED


async def test_children_at_other_servers_are_looked_at_together(house: Any) -> None:
    def many() -> Steps:
        yield Ask("wait/set", {"mode": "all", "waits": [child(), child(), child()]})

    run_id = await house.start(family(many, answers))
    kids = [await child_of(house, run_id, index) for index in range(3)]
    for kid in kids:
        await house.reaches(kid.id, RunState.SUSPENDED)
    asked, real = list[str](), {name: getattr(house.log, name) for name in ("head", "heads")}
    for name in real:

        async def counted(*args: Any, _name: str = name, **how: Any) -> Any:
            asked.append(_name)
            return await real[_name](*args, **how)

        setattr(house.log, name, counted)
    await house.engine._children.look(lambda run_id: False)
    assert asked == ["heads"]


def program_family(words: list[str], end: Callable[[], Steps]) -> Any:
    """A program, and the one that it has as a child: which of both it is is told by who was there first."""
    parents: list[str] = []

    def program() -> Steps:
        begun = yield Ask("begin", {})
        parents.append(begun.value["run_id"])
        if parents[-1] == parents[0]:
            said = yield Ask("wait", child("", command=words))
            yield Ask("emit", {"name": "said", "value": said.value})
            return 0
        return (yield from end())

    return program


PROGRAM = {"source": "", "file": "", "function": "", "command": ["sh", "team.sh"]}


@pytest.mark.parametrize("of", [{}, PROGRAM])
async def test_a_program_is_the_child_of_an_agent_or_a_program(house: Any, of: dict[str, Any]) -> None:
    def ends() -> Steps:
        yield approval()
        return 0

    mounts = [
        Mount(target="/notes", source="notes"),
        Mount(target="/data", source="data", read_only=True),
        Mount(target="/new"),
        Mount(target="/tmp", kind=MountKind.TMPFS),
    ]
    more: dict[str, Any] = {"env": {"A": "b"}, "fittings": Fittings(mounts=mounts, user="ann"), **of}
    run_id = await house.start(program_family(["sh", "-c", "echo owls"], ends), **more)
    kid = await child_of(house, run_id)
    assert (kid.parent, kid.agent, kid.image) == (run_id, "sh -c echo owls", "image")
    await house.reaches(kid.id, RunState.SUSPENDED)
    await house.reaches(run_id, RunState.SUSPENDED)
    await house.restart()
    await house.engine.approve(kid.id, None, approved=True)
    await house.ends(run_id)
    (said,) = await house.entries(run_id, "emit")
    result = {"exit_status": 0, "output": "output\n"}
    assert said.payload["value"] == {"kind": "child", "run_id": kid.id, "result": result, "timed_out": False}
    plan = house.machines.plans[-1]
    assert (plan.command, plan.agent, plan.source) == (["sh", "-c", "echo owls"], "", b"")
    keys = {one.run_id: one.env["OPENAI_API_KEY"] for one in house.machines.plans}
    assert plan.env["A"] == "b" and keys[kid.id] != keys[run_id]  # a key of its own
    # what its parent writes stays its parent's
    assert (plan.fittings.user, plan.fittings.mounts) == ("ann", mounts[1:])


async def test_a_program_that_fails_is_told_with_its_exit_status(house: Any) -> None:
    def ends() -> Steps:
        yield Ask("emit", {"name": "begun", "value": 1})
        return 3

    run_id = await house.start(program_family(["sh"], ends), **PROGRAM)
    await house.ends(run_id)
    (said,) = await house.entries(run_id, "emit")
    error = said.payload["value"]["error"]
    assert (error["code"], error["details"]["exit_status"]) == ("program-failed", 3)


async def test_a_program_has_no_agents(house: Any) -> None:
    def program() -> Steps:
        said = yield Ask("wait", child())
        yield Ask("emit", {"name": "said", "value": said.value["error"]})

    run_id = await house.start(program, **PROGRAM)
    await house.ends(run_id)
    (said,) = await house.entries(run_id, "emit")
    assert "it has no agents" in said.payload["value"]["message"] and "command" in said.payload["value"]["hint"]


def test_a_run_without_microvms_has_no_programs() -> None:
    request = StartRequest(source="x", file="agent.py", function="main", durability="replay")
    record = Record(state=RunState.RUNNING, request=request, source="sha256:1")
    with pytest.raises(InvalidValue, match="no program can be its child"):
        children.check(record, Asking(kind="child", command=["sh"]))
    children.check(record, Asking(kind="child", function="other"))


async def test_a_child_that_takes_too_long_is_cancelled(house: Any) -> None:
    def limits() -> Steps:
        said = yield Ask("wait", child(timeout_s=0.3))
        yield Ask("complete", {"result": said.value})

    run_id = await house.start(family(limits, answers))
    kid = await child_of(house, run_id)
    assert (await house.ends(run_id)).result == {"kind": "child", "timed_out": True}
    assert (await house.ends(kid.id)).state is RunState.CANCELLED
