"""The examples, whole: SDK, calls, engine, log and gateway are the real ones."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from perdure.client import source
from perdure.model import Entry, RunState
from perdure.runs.record import StartRequest

from .conftest import House

pytestmark = pytest.mark.timeout(60)
EXAMPLES = Path(__file__).parents[3] / "examples"


@dataclass
class Model:
    """Counts what it is asked; a stream stops before its last word until ``go``."""

    asked: list[str] = field(default_factory=list)
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    go: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body["messages"][-1]["content"])
        text = f"answer {len(self.asked)}. More."
        if not body.get("stream"):
            message = {"role": "assistant", "content": text}
            return web.json_response({"model": "tiny", "choices": [{"message": message, "finish_reason": "stop"}]})
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        *words, last = [{"delta": {"content": word}} for word in text.split(" ")] + [
            {"finish_reason": "stop", "delta": {}}
        ]
        for choice in words:
            await response.write(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")
        self.reached.set()
        await self.go.wait()
        await response.write(b"data: " + json.dumps({"choices": [last]}).encode() + b"\n\ndata: [DONE]\n\n")
        return response


@pytest.fixture
async def model() -> AsyncIterator[Model]:
    yield Model()


@pytest.fixture
async def provider_url(model: Model) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", model.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    model.go.set()
    await runner.cleanup()


TWO_TURNS = """
from perdure import Context, agent
@agent(image="any")
def f(ctx: Context, topic: str):
    first = ctx.chat(f"What is {topic}?")
    approved = ctx.approval("Go on?").approved
    told = []
    second = ctx.chat("Go on.", on_delta=told.append)
    return [first.text, approved, second.text, told, ctx.step("s", lambda: 1)]
"""


async def start(house: House, agent: source.AgentSource, given: Any) -> str:
    info, _ = await house.engine.start(
        StartRequest(image="any", source=agent.source, file=agent.file, function=agent.function, input=given)
    )
    return info.id


async def until(house: House, run_id: str, kind: str, count: int = 1) -> Entry:
    """The ``count``-th entry of a kind, within 30 s."""
    seen = []
    for _ in range(1000):  # a child is started after the entry that names it
        if run_id in house.engine._runs:
            break
        await asyncio.sleep(0.01)
    try:
        async with asyncio.timeout(30), aclosing(house.log.follow(run_id)) as entries:
            async for entry in entries:
                seen.append(entry.kind)
                if seen.count(kind) == count:
                    return entry
                assert entry.kind not in ("run.failed", "run.cancelled"), entry
    except TimeoutError:
        raise AssertionError(f"no {kind}: {seen}") from None
    raise AssertionError("the log does not end")


async def test_an_agent_killed_in_mid_stream_asks_nothing_twice(house: House, model: Model) -> None:
    """With no snapshot it starts over, and everything that was answered is answered again from the log."""
    run_id = await start(house, source.AgentSource("x.py", "f", TWO_TURNS), {"topic": "owls"})
    await until(house, run_id, "wait.started")
    await house.engine.approve(run_id, None, approved=True, comment="go on", by="ann")
    await model.reached.wait()
    await house.machines.kill(run_id)
    await until(house, run_id, "model.replayed", 2)  # the first turn from the log, the second in flight
    model.go.set()
    info = await house.engine.ended(run_id, 30)
    assert info.state is RunState.COMPLETED, info.error
    assert info.result == ["answer 1. More.", True, "answer2.More.", ["answer", "2.", "More."], 1]
    assert len(model.asked) == 2 and info.turns_asked == 2 and info.recoveries == 1
    kinds = [entry.kind for entry in await house.log.read(run_id)]
    assert kinds.count("model.committed") == 2 and kinds.count("step.result") == 1 and kinds.count("wait.started") == 1
    assert "diverged" not in kinds


async def test_the_counter(house: House, model: Model) -> None:
    model.go.set()
    run_id = await start(house, source.read(f"{EXAMPLES}/counter.py:counter"), {"topic": "owls"})
    await until(house, run_id, "wait.started")
    await house.engine.approve(run_id, None, approved=True, comment="go on", by="ann")
    info = await house.engine.ended(run_id, 30)
    assert info.state is RunState.COMPLETED, info.error
    result = info.result
    assert result["counter"] == 2 and result["approved"] and result["comment"] == "go on" and result["lines"] == 2
    emitted = [entry.payload["value"] for entry in await house.log.read(run_id) if entry.kind == "emit"]
    assert [state["counter"] for state in emitted] == [1, 2]
    assert all(state["pid"] == result["pid"] and state["file"] == "answer 1. More." for state in emitted)


async def test_research_denied(house: House, model: Model) -> None:
    run_id = await start(house, source.read(f"{EXAMPLES}/research.py:research"), {"topic": "owls"})
    await until(house, run_id, "wait.started")
    await house.engine.approve(run_id, None, approved=False, comment="shorter", by="ann")
    info = await house.engine.ended(run_id, 30)
    assert info.state is RunState.COMPLETED and info.result == "answer 3. More."
    assert model.asked[2].startswith("answer 1. answer 2.") and "shorter" in model.asked[2]


async def test_an_agent_that_does_not_import_fails_with_its_line(house: House) -> None:
    text = "from perdure import agent\nimport no_such\n@agent()\ndef f(ctx): pass\n"
    request = StartRequest(image="any", source=text, file="x.py", function="f")
    info, _ = await house.engine.start(request)
    ended = await house.engine.ended(info.id, 30)
    assert ended.state is RunState.FAILED and ended.error is not None
    assert ended.error["code"] == "agent-invalid" and "line 2 does not import" in ended.error["message"]


CANCELS = """
import asyncio
from perdure import agent
@agent(image="any")
async def f(ctx):
    begun = asyncio.Event()
    async def long():
        begun.set()
        await asyncio.Event().wait()
    nobody = asyncio.create_task(ctx.approval("Nobody is there?"))
    await ctx.wait_for("late")
    nobody.cancel()
    await asyncio.gather(nobody, return_exceptions=True)
    task = asyncio.create_task(ctx.step("long", long))
    await begun.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    verdict = await ctx.approval("And you?")
    return [verdict.by, task.cancelled()]
"""


async def test_what_a_cancelled_task_waited_for_or_did_is_over(house: House) -> None:
    """Else its run would be kept warm for ever: nobody asks for that wait, and nothing ends that step."""
    run_id = await start(house, source.AgentSource("x.py", "f", CANCELS), None)
    await until(house, run_id, "wait.started", 2)  # of the approval, too
    await house.engine.signal(run_id, "late", None)
    await until(house, run_id, "wait.started", 3)
    info = await house.engine.info(run_id)
    assert [wait["name"] for wait in info.waits] == ["And you?"]
    entries = await house.log.read(run_id)
    gone = [
        entry.payload for entry in entries if entry.kind == "wait.completed" and entry.payload["kind"] == "approval"
    ]
    (ended,) = [entry.payload for entry in entries if entry.kind == "step.result"]
    assert [payload["outcome"] for payload in gone] == ["withdrawn"] and ended["error"]["type"] == "CancelledError"
    await house.engine.approve(run_id, None, approved=True, by="ann")
    assert (await house.engine.ended(run_id, 30)).result == ["ann", True]


CHILDREN = """
from __future__ import annotations
from dataclasses import dataclass
from perdure import Context, agent
from perdure.errors import ChildFailed

@dataclass
class Note:
    text: str

@agent(image="any")
def note(ctx: Context, topic: str) -> Note:
    if topic == "ghosts":
        raise ValueError("there are none")
    return Note(f"{topic} by {ctx.approval('Who?').by}")

@agent(image="any")
def f(ctx: Context):
    one = ctx.run(note, topic="owls")
    try:
        ctx.run(note, topic="ghosts")
    except ChildFailed as error:
        told = error
    which, value = ctx.any(ctx.later.sleep("1h"), ctx.later.wait_for("go"), ctx.later.run(note, topic="cats"))
    both = ctx.all(ctx.later.wait_for("a"), ctx.later.wait_for("b"))
    return [one.text, told.message, told.details["error"]["code"], which, value, both]
"""


async def test_children_and_sets_in_an_agent_that_is_killed(house: House) -> None:
    run_id = await start(house, source.AgentSource("x.py", "f", CHILDREN), None)
    started = await until(house, run_id, "wait.started")
    kid = started.payload["wait"]["child"]
    await until(house, kid, "wait.started")
    await house.machines.kill(run_id)
    await house.engine.approve(kid, None, approved=True, by="ann")
    (*_, cats) = (await until(house, run_id, "wait.started", 3)).payload["parts"]
    await until(house, cats["child"], "wait.started")  # one that is not there yet when "go" comes is never made
    await house.engine.signal(run_id, "go", 7)
    await until(house, run_id, "wait.started", 4)
    await house.engine.signal(run_id, "b", 2)
    await house.engine.signal(run_id, "a", 1)
    info = await house.engine.ended(run_id, 30)
    assert info.state is RunState.COMPLETED, info.error
    text, failed, code, *rest = info.result
    assert (text, code, rest) == ("owls by ann", "agent-failed", [1, 7, [1, 2]])
    assert "(note) failed: ValueError: there are none" in failed and len(info.children) == 3
    assert (await house.engine.ended(info.children[2], 30)).state is RunState.CANCELLED
