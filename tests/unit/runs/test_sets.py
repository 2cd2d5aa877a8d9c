"""Many waits at once: all of them, or the first; completed in any state, the run goes on exactly once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure.errors import Conflict
from perdure.model import RunState
from perdure.testing.clock import FakeClock
from perdure.testing.machines import Ask
from perdure.testing.programs import Steps


def signal(name: str) -> dict[str, Any]:
    return {"kind": "signal", "name": name}


def together(mode: str, *waits: dict[str, Any], **more: Any) -> Steps:
    said = yield Ask("wait/set", {"mode": mode, "waits": list(waits), **more})
    yield Ask("complete", {"result": said.value})


async def test_all_of_wakes_once_when_the_last_has_come(house: Any) -> None:
    asks = {"kind": "approval", "prompt": "Sure?"}
    run_id = await house.start(
        lambda: together("all", signal("a"), asks, signal("b"), {"kind": "time", "seconds": 0.1})
    )
    await house.reaches(run_id, RunState.SUSPENDED)
    await house.engine.signal(run_id, "b", 2)
    await house.engine.approve(run_id, None, approved=True, by="ann")
    info = await house.engine.info(run_id)
    assert next(wait["kind"] for wait in info.waits if wait["of"]) == "signal"
    await house.engine.signal(run_id, "a", 1)
    result = (await house.ends(run_id)).result
    assert [part and part.get("value", part.get("by")) for part in result["waits"]] == [1, "ann", 2, None]
    assert sorted(result["order"]) == [0, 1, 2, 3] and result["order"][-1] in (0, 3)
    assert result["order"].index(2) < result["order"].index(1) < result["order"].index(0)
    assert house.machines.done == ["start", "suspend", "resume"]
    completed = await house.entries(run_id, "wait.completed")
    assert [entry.payload["order"] for entry in completed if "order" in entry.payload] == [result["order"]]
    assert len(completed) == 5 and len(await house.entries(run_id, "wait.started")) == 1


async def test_the_losers_of_any_of_are_over(house: Any) -> None:
    asks = {"kind": "approval", "prompt": "Sure?"}

    def program() -> Steps:
        said = yield Ask("wait/set", {"mode": "any", "waits": [signal("a"), asks, signal("b")]})
        later = yield Ask("wait", signal("a"))
        yield Ask("complete", {"result": [said.value["order"], said.value["waits"], later.value["value"]]})

    run_id = await house.start(program)
    await house.reaches(run_id, RunState.SUSPENDED)
    approval = next(wait for wait in (await house.engine.info(run_id)).waits if wait["kind"] == "approval")
    await house.engine.signal(run_id, "b", 2)
    with pytest.raises(Conflict, match="is not open"):
        await house.engine.approve(run_id, approval["id"], approved=True)
    await house.engine.signal(run_id, "a", 1)  # nobody waits for it in the set any more: the next wait takes it
    assert (await house.ends(run_id)).result == [
        [2],
        [None, None, {"kind": "signal", "value": 2, "timed_out": False}],
        1,
    ]


@pytest.mark.parametrize("mode", ["all", "any"])
async def test_a_set_has_a_timeout(house: Any, mode: str) -> None:
    clock = await house.at(FakeClock())
    run_id = await house.start(lambda: together(mode, signal("a"), signal("b"), timeout_s=60))
    await house.reaches(run_id, RunState.WAITING)
    if mode == "all":
        await house.engine.signal(run_id, "b", 2)
    clock.move(61)
    result = (await house.ends(run_id)).result
    assert (result["timed_out"], result["order"]) == (True, [1] if mode == "all" else [])
    assert result["waits"][0] is None


async def test_signals_that_were_kept_are_taken_one_by_one(house: Any) -> None:
    def program() -> Steps:
        yield Ask("wait", signal("start"))
        said = yield Ask("wait/set", {"mode": "all", "waits": [signal("a"), signal("a"), signal("b")]})
        one = yield Ask("wait/set", {"mode": "any", "waits": [signal("c"), signal("a")]})
        yield Ask("complete", {"result": [[part["value"] for part in said.value["waits"]], one.value["order"]]})

    run_id = await house.start(program)
    await house.reaches(run_id, RunState.WAITING, RunState.SUSPENDED)
    for name, value in (("a", 1), ("a", 2), ("a", 3), ("start", None)):
        await house.engine.signal(run_id, name, value)
    await house.engine.signal(run_id, "b", 4)
    assert (await house.ends(run_id)).result == [[1, 2, 4], [1]]


async def test_a_set_is_answered_the_same_after_a_loss(house: Any) -> None:
    go = asyncio.Event()

    def program() -> Steps:
        first = yield Ask("wait/set", {"mode": "any", "waits": [signal("a"), signal("b")]})
        second = yield Ask("wait/set", {"mode": "all", "waits": [signal("c"), signal("d")]})
        go.set()
        yield Ask("wait", signal("end"))
        yield Ask("complete", {"result": [first.value["order"], second.value["order"]]})

    run_id = await house.start(program)
    await house.engine.signal(run_id, "b", 0)
    await house.engine.signal(run_id, "d", 0)
    await house.reaches(run_id, RunState.SUSPENDED)
    house.machines.sandboxes.clear()  # with half of the second set come
    await house.engine.signal(run_id, "c", 0)
    await asyncio.wait_for(go.wait(), 10)
    await house.engine.signal(run_id, "end", 0)
    assert (await house.ends(run_id)).result == [[1], [1, 0]]
    assert len(await house.entries(run_id, "wait.started")) == 3


async def test_a_withdrawn_set_leaves_nothing_open(house: Any) -> None:
    def program() -> Steps:
        asked = Ask("wait/set", {"mode": "all", "waits": [signal("a"), signal("b")]}, at=3)
        both = yield [asked, Ask("wait/withdraw", {}, at=3)]
        yield Ask("complete", {"result": both[0].value})

    run_id = await house.start(program)
    info = await house.ends(run_id)
    assert info.result == {"kind": "all", "withdrawn": True} and info.waits == []


async def test_a_run_that_is_cancelled_is_told_once_for_a_set(house: Any) -> None:
    def program() -> Steps:
        said = yield Ask("wait/set", {"mode": "all", "waits": [signal("a"), signal("b")]})
        yield Ask("complete", {"result": said.value})

    run_id = await house.start(program)
    await house.reaches(run_id, RunState.SUSPENDED)
    await house.engine.cancel(run_id)
    info = await house.ends(run_id)
    assert info.state is RunState.CANCELLED and info.waits == []
    (over,) = await house.entries(run_id, "wait.completed")
    assert (over.payload["kind"], over.payload["outcome"]) == ("all", "cancelled")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"mode": "all", "waits": []}, "a set of 0 waits"),
        ({"mode": "most", "waits": [signal("a")]}, "Invalid enum value 'most'"),
        ({"mode": "all", "waits": [signal("a")] * 1001}, "a set of 1001 waits"),
        ({"mode": "all", "waits": [signal("a"), {"kind": "nap"}]}, "waits[1]: no such kind of wait: 'nap'"),
        ({"mode": "all", "waits": [{**signal("a"), "timeout_s": 1}]}, "waits[0]: a wait in a set has no timeout_s"),
        ({"mode": "all", "waits": [{**signal("a"), "x": 1}]}, "unknown field `x`"),
        ({"mode": "all", "waits": [signal("a")], "timeout_s": -1}, "timeout_s is not a number"),
    ],
)
async def test_a_set_that_is_none_is_refused(house: Any, body: dict[str, Any], words: str) -> None:
    def program() -> Steps:
        said = yield Ask("wait/set", body)
        yield Ask("complete", {"result": [said.status, said.value["error"]["message"]]})

    status, message = (await house.ends(await house.start(program))).result
    assert status == 400 and words in message


async def test_a_thousand_waits_at_once(house: Any) -> None:
    run_id = await house.start(lambda: together("all", *(signal(f"s{i}") for i in range(1000))))
    await house.reaches(run_id, RunState.WAITING, RunState.SUSPENDED)
    for i in range(1000):
        await house.engine.signal(run_id, f"s{i}", i)
    result = (await house.ends(run_id)).result
    assert result["order"] == list(range(1000)) and [part["value"] for part in result["waits"]] == result["order"]
