"""Hooks are told of a run's states: at least once, in order, over failures and restarts."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from perdure.errors import Conflict, InvalidValue, Unavailable
from perdure.model import RunState
from perdure.runs import retention
from perdure.runs.hook import Hook, RunHook
from perdure.runs.hooks import Courier
from perdure.testing.house import AGENT, House, nothing
from perdure.testing.machines import Ask
from perdure.testing.programs import Steps, approval


class Outside:
    """Who is told. ``down``: takes nothing."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, Any]] = []  # hook, delivery, body
        self.tries = 0
        self.down = False
        self.changed = asyncio.Event()

    async def send(self, hook: Hook, delivery: str, body: bytes) -> None:
        self.tries += 1
        self.changed.set()
        if self.down:
            raise Unavailable("nobody is there")
        value = msgspec.json.decode(body)
        self.told.append((hook.url, delivery, value))

    async def has(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.told) < count:
                self.changed.clear()
                await self.changed.wait()


async def up(house: House, outside: Outside, **hooks: Hook) -> None:
    """Up again, with a courier."""
    await house.down()

    def engine_made(engine: Any) -> None:
        engine.courier = Courier(house.log, house.clock, outside, hooks, "the server's")

    house.before_open = engine_made
    await house.up()


async def owes_nothing(house: House) -> None:
    async with asyncio.timeout(20):
        while await house.context.kept("hook"):
            await asyncio.wait({asyncio.create_task(asyncio.sleep(0.005))})


def asks() -> Steps:
    yield approval()
    yield Ask("complete", {"result": 1})


EVERYTHING = Hook(url="http://all", states=list(RunState))


async def test_states_are_told_in_order_and_what_is_not_wished_for_is_not(house: House) -> None:
    outside = Outside()
    await up(house, outside, all=EVERYTHING, ends=Hook(url="http://ends"))
    run_id = await house.start(asks, tags={"team": "owls"}, name="n", hooks=[RunHook(url="http://own")])
    await house.reaches(run_id, RunState.SUSPENDED)
    await house.engine.approve(run_id, None, approved=True)
    await house.ends(run_id)
    entries = [entry for entry in await house.entries(run_id) if entry.kind.startswith("run.")]
    await outside.has(len(entries) + 2)
    everything = [body for url, _, body in outside.told if url == "http://all"]
    assert [(body["state"], body["id"]) for body in everything] == [
        (entry.kind.removeprefix("run."), f"{run_id}:1:{entry.seq}") for entry in entries
    ]
    ends = [(url, body["state"], body["details"]) for url, _, body in outside.told if url != "http://all"]
    assert sorted(ends) == [(url, "completed", {"result": 1}) for url in ("http://ends", "http://own")]
    assert (everything[-1]["tags"], everything[-1]["name"], everything[-1]["agent"]) == (
        {"team": "owls"}, "n", "agent.py:main"
    )  # fmt: skip
    assert all(delivery == body["id"] for _, delivery, body in outside.told)
    await house.released(run_id)
    await owes_nothing(house)  # nothing is kept of a run that all were told of


async def test_what_was_not_delivered_when_a_server_ended_is_delivered_by_the_next(house: House) -> None:
    outside = Outside()
    outside.down = True
    await up(house, outside, ends=Hook(url="http://ends"))
    run_id = await house.start(nothing)
    await house.ends(run_id)
    await house.released(run_id)
    async with asyncio.timeout(20):
        while not outside.tries:
            outside.changed.clear()
            await outside.changed.wait()
    outside.down = False
    await up(house, outside, ends=Hook(url="http://ends"))
    await outside.has(1)
    assert outside.told[0][2]["state"] == "failed"


async def test_a_delivery_that_was_taken_but_not_noted_comes_again_with_the_same_id(house: House) -> None:
    outside = Outside()
    await up(house, outside, ends=Hook(url="http://ends"))
    real = house.log.keep

    async def keep(*args: Any, **kwargs: Any) -> Any:
        if args[0] == "hook" and args[2].get("seq"):
            raise Unavailable("the database is away")
        return await real(*args, **kwargs)

    house.log.keep = keep
    run_id = await house.start(nothing)
    await outside.has(1)
    await house.ends(run_id)
    house.log.keep = real
    await up(house, outside, ends=Hook(url="http://ends"))
    await outside.has(2)
    assert len({delivery for _, delivery, _ in outside.told}) == 1


async def test_a_server_that_ends_before_it_notes_that_all_was_told_leaves_nothing(house: House) -> None:
    outside = Outside()
    await up(house, outside, ends=Hook(url="http://ends"))
    real, asked = house.log.drop, asyncio.Event()

    async def drop(*args: Any) -> Any:
        asked.set()
        raise Unavailable("the database is away")

    house.log.drop = drop
    await house.ends(await house.start(nothing))
    await asyncio.wait_for(asked.wait(), 20)
    house.log.drop = real
    await up(house, outside, ends=Hook(url="http://ends"))
    await owes_nothing(house)
    assert len(outside.told) == 1


async def test_a_delivery_that_was_given_up_before_it_began_is_made_when_the_run_comes_back(house: House) -> None:
    outside = Outside()
    await up(house, outside, ends=Hook(url="http://ends"))
    run_id = await house.start(asks)
    await house.reaches(run_id, RunState.WAITING)
    run, courier = house.engine._runs[run_id], house.engine.courier
    assert courier is not None
    async with asyncio.timeout(20):
        while courier._busy:
            await asyncio.wait(courier._busy.values())
    courier.changed(run)
    await courier.let_go()
    await courier.take(run_id, run.record)
    await house.engine.approve(run_id, None, approved=True)
    await outside.has(1)


async def test_a_hook_that_is_down_holds_up_no_other(house: House) -> None:
    outside = Outside()

    class Half(Outside):
        async def send(self, hook: Hook, delivery: str, body: bytes) -> None:
            if hook.url == "http://down":
                raise Unavailable("down")
            await outside.send(hook, delivery, body)

    await up(house, Half(), down=Hook(url="http://down"), up=Hook(url="http://up"))
    for _ in range(3):
        await house.ends(await house.start(nothing))
    await outside.has(3)


async def test_a_run_that_ends_on_another_branch_during_a_delivery_is_told_to_its_end(house: House) -> None:
    lives = 0

    def program() -> Steps:
        nonlocal lives
        lives += 1
        yield Ask("emit", {"name": f"life {lives}"})  # it goes another way than its log
        if lives == 1:
            yield approval()
        yield Ask("complete", {"result": lives})

    class Slow(Outside):
        """What it is told of the machine that follows on the lost one it takes when the run is long over."""

        def __init__(self) -> None:
            super().__init__()
            self.began, self.goes_on = asyncio.Event(), asyncio.Event()

        async def send(self, hook: Hook, delivery: str, body: bytes) -> None:
            if [said["state"] for _, _, said in self.told].count("recovering") and not self.began.is_set():
                self.began.set()
                await self.goes_on.wait()
            await super().send(hook, delivery, body)

    outside = Slow()
    await up(house, outside, all=Hook(url="http://all", states=["running", "recovering", "completed"]))
    run_id = await house.start(program)
    await house.reaches(run_id, RunState.WAITING)
    await house.kill_machine(run_id)
    await asyncio.wait_for(outside.began.wait(), 20)
    assert (await house.ends(run_id)).branch == 2
    await house.released(run_id)
    outside.goes_on.set()
    await outside.has(4)
    assert [said["state"] for _, _, said in outside.told] == ["running", "recovering", "running", "completed"]


async def test_a_start_under_a_key_that_is_taken_owes_nothing(house: House) -> None:
    outside = Outside()
    await up(house, outside, ends=Hook(url="http://ends"))
    await house.start(asks, key="k")
    _, is_new = await house.engine.start(msgspec.structs.replace(AGENT, key="k"))
    assert not is_new and len(await house.context.kept("hook")) == 1
    with pytest.raises(Conflict, match="another input"):
        await house.engine.start(msgspec.structs.replace(AGENT, key="k", input=2))
    assert len(await house.context.kept("hook")) == 1


async def test_a_pruned_run_owes_nothing(house: House) -> None:
    outside = Outside()
    outside.down = True
    await up(house, outside, ends=Hook(url="http://ends"))
    run_id = await house.start(nothing)
    await house.ends(run_id)
    await house.released(run_id)
    await retention.prune(house.context, run_id)
    outside.down = False
    await up(house, outside, ends=Hook(url="http://ends"))
    await owes_nothing(house)
    assert outside.told == []


@pytest.mark.parametrize(
    ("hook", "words"),
    [
        (RunHook(url=""), "either a url or a command"),
        (RunHook(url="ftp://x"), "not the url of a hook"),
        (RunHook(url="http:///x"), "not the url of a hook"),
        (RunHook(url="http://x", states=["dead"]), "a hook for no state: 'dead'"),
    ],
)
async def test_wrong_hooks_start_nothing(house: House, hook: RunHook, words: str) -> None:
    with pytest.raises(InvalidValue, match=words):
        await house.start(nothing, hooks=[hook])
