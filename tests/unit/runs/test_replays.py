"""What a recovery answered from the log is written down, and told."""

from __future__ import annotations

import asyncio
from typing import Any

from perdure.cli.perdure._story import Story
from perdure.model import RunState
from perdure.testing.machines import Ask, Effect
from perdure.testing.programs import Steps, approval, chat


def step(name: str, at: int, on_doubt: str = "retry", held: asyncio.Event | None = None) -> Steps:
    asked = yield Ask("step", {"name": name, "on_doubt": on_doubt}, at=at)
    if asked.value["status"] == "run":
        yield Effect(lambda: None)
        if held is not None and not held.is_set():
            held.set()
            yield Ask("wait", {"kind": "signal", "name": "never"}, lane="other", at=0)
        yield Ask("step/end", {"result": name}, at=at)


async def slow(house: Any) -> None:
    """Nothing is suspended: what is lost is begun again."""
    house.settings = type(house.settings)(idle_grace_s=60, backoff_s=0.02)
    await house.down()
    await house.up()


async def story(house: Any, run_id: str) -> str:
    told = Story(100)
    return "\n".join(line for entry in await house.entries(run_id) for line in told.lines(entry))


async def test_what_was_answered_since_a_loss_is_one_entry(house: Any, provider: Any) -> None:
    held = asyncio.Event()

    def program() -> Steps:
        yield Ask(chat("one").name, chat("one").body, at=0)
        yield from step("first", 1)
        yield Ask("emit", {"name": "mark"}, at=2)
        yield Ask("wait", {"kind": "signal", "name": "go"}, at=3)
        yield from step("pay", 4, held=held)
        yield Ask(chat("two").name, chat("two").body, at=5)
        yield Ask("complete", {"result": 1}, at=6)

    await slow(house)
    run_id = await house.start(program)
    await house.engine.signal(run_id, "go", None)
    await asyncio.wait_for(held.wait(), 10)
    await house.reaches(run_id, RunState.WAITING)
    await house.kill_machine(run_id)
    await house.ends(run_id)
    (replayed,) = await house.entries(run_id, "replayed")
    counts = {name: replayed.payload[name] for name in ("turns", "steps", "waits", "others")}
    assert counts == {"turns": 1, "steps": 1, "waits": 1, "others": 1}
    assert [(one["call"], one.get("name")) for one in replayed.payload["answered"]] == [
        ("turn", None),
        ("step", "first"),
        ("wait", None),
    ]
    (again,) = replayed.payload["again"]
    assert (again["call"], again["name"]) == ("step", "pay")
    intents = await house.entries(run_id, "step.intent")
    assert intents[-1].payload["attempt"] == 2 and intents[-1].seq == replayed.seq + 1  # before what was new
    text = await story(house, run_id)
    assert "recovering: machine-died" in text
    assert "begins again: no snapshot is left on its way" in text
    assert "answered since: 1 turn, 1 step, 1 wait, 1 other" in text
    assert "which: turn main/0 (entry" in text and "step first (entry" in text
    assert "no answer for step pay: its machine was lost before its result was recorded" in text


async def test_a_turn_without_an_answer_is_named(house: Any, provider: Any) -> None:
    def program() -> Steps:
        yield chat("one")
        yield chat("two", stream=True)
        yield Ask("complete", {"result": 1})

    await slow(house)
    provider.hold = asyncio.Event()
    run_id = await house.start(program)
    await asyncio.wait_for(provider.reached.wait(), 10)
    await house.down()
    provider.hold.set()
    await house.machines.kill(next(iter(house.machines.sandboxes)))
    await house.up()
    await house.ends(run_id)
    (replayed,) = await house.entries(run_id, "replayed")
    assert replayed.payload["turns"] == 1
    assert [(one["call"], one["why"]) for one in replayed.payload["again"]] == [
        ("turn", "the log has no complete answer")
    ]


async def test_a_run_that_waits_on_says_where_it_went_on(house: Any) -> None:
    def program() -> Steps:
        yield approval("One?")
        yield approval("Two?")
        yield approval("Three?")
        yield Ask("complete", {"result": 1})

    run_id = await house.start(program)
    at = (await house.reaches(run_id, RunState.SUSPENDED)).seq
    await house.engine.approve(run_id, None, approved=True)
    run = house.engine._runs[run_id]
    assert await run.until(lambda: any(wait.name == "Two?" for wait in run.record.waits.open), 10)
    assert await run.until(lambda: run.state is RunState.SUSPENDED, 10)
    (fork,) = await house.engine.fork(run_id, at=(await house.entries(run_id, "wait.started"))[1].seq)
    await house.reaches(fork.id, RunState.SUSPENDED)
    (replayed,) = await house.entries(fork.id, "replayed")
    assert (replayed.payload["waits"], replayed.payload["again"]) == (1, [])  # the second one is open as it was
    text = await story(house, fork.id)
    assert "goes on from the snapshot of entry" in text and f"forked from run {run_id}" in text
    assert at < replayed.seq
    assert await house.entries(run_id, "replayed") == []  # suspends and resumes are no losses
    await house.engine.approve(fork.id, None, approved=True)
    run = house.engine._runs[fork.id]
    assert await run.until(lambda: any(wait.name == "Three?" for wait in run.record.waits.open), 10)
    assert await run.until(lambda: run.state is RunState.SUSPENDED, 10)
    await house.engine.approve(fork.id, None, approved=True)
    await house.ends(fork.id)
    assert await house.entries(fork.id, "replayed") == [replayed]  # nor are those that come after one


class Reads:
    """A log that counts how often entries are read by the page."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self.pages = 0

    def __getattr__(self, name: str) -> Any:
        if name == "read":
            self.pages += 1
        return getattr(self._log, name)


async def test_a_recovery_from_a_snapshot_reads_no_pages_of_the_log(house: Any) -> None:
    """So it takes as long however long the log is."""

    def program() -> Steps:
        for number in range(300):
            yield Ask("emit", {"name": "n", "value": number})
        yield approval("Sleep?")
        yield approval("Go on?")
        yield Ask("complete", {"result": 1})

    house.wrap = Reads
    await house.down()
    await house.up()
    run_id = await house.start(program)
    await house.reaches(run_id, RunState.SUSPENDED)
    run = house.engine._runs[run_id]
    held = asyncio.Event()
    house.machines.before["suspend"] = held.wait
    await house.engine.approve(run_id, None, approved=True)
    assert await run.until(lambda: [wait.name for wait in run.record.waits.open] == ["Go on?"], 10)
    before = house.log.pages
    await house.kill_machine(run_id)
    held.set()
    assert await run.until(lambda: run.record.recoveries == 1 and run.state is RunState.SUSPENDED, 10)
    assert house.log.pages == before
    assert house.machines.done.count("start") == 1
