"""Steps that are tried again: each attempt recorded, decided the same by whoever lives through it again."""

from __future__ import annotations

import asyncio

import pytest

from perdure.model import RunState
from perdure.runs.record import StartRequest

from .conftest import House

pytestmark = pytest.mark.timeout(60)

SYNC = """
from perdure import agent
class Busy(OSError): pass
tried = []
def call(idempotency_key):
    tried.append(idempotency_key)
    if len(tried) < 3: raise Busy("later")
    return tried
def wrong(): raise ValueError("never")
@agent(image="any")
def f(ctx):
    keys = ctx.step("call", call, retries=3, backoff="10ms", retry_on=OSError)
    try:
        ctx.step("wrong", wrong, retries=3, retry_on=("Busy", KeyError))
    except Exception as problem:
        ctx.emit("wrong", type(problem).__name__)
    try:
        ctx.step("wrong again", wrong, retries=1, backoff=0)
    except Exception as problem:
        ctx.emit("wrong again", type(problem).__name__)
    ctx.wait_for("go")
    return [len(keys), len(set(keys))]
"""
ASYNC = SYNC.replace("def f", "async def f").replace("    ctx.", "    await ctx.").replace("= ctx.", "= await ctx.")


@pytest.fixture
async def provider_url() -> str:
    return "http://127.0.0.1:9/v1"  # nobody is asked


@pytest.mark.parametrize("text", [SYNC, ASYNC], ids=["sync", "async"])
async def test_attempts_are_recorded_and_answered_from_the_log(house: House, text: str) -> None:
    request = StartRequest(image="any", source=text, file="x.py", function="f")
    info, _ = await house.engine.start(request)

    async def parked(times: int) -> None:
        async with asyncio.timeout(30):
            async for entry in house.engine.follow(info.id, 0):
                is_go = entry.kind == "wait.started" and entry.payload["wait"].get("name") == "go"
                times -= is_go or (entry.kind == "run.waiting" and entry.epoch > 1)
                if not times:
                    return

    await parked(1)
    await house.machines.kill(info.id)
    await parked(2)  # it lived through all of it again
    await house.engine.signal(info.id, "go", None)
    ended = await house.engine.ended(info.id, 20)
    assert (ended.state, ended.result) == (RunState.COMPLETED, [3, 1]), ended.error
    entries = await house.log.read(info.id)
    results = [(e.payload["name"], "error" in e.payload) for e in entries if e.kind == "step.result"]
    assert results == [("call", True), ("call", True), ("call", False), ("wrong", True)] + [("wrong again", True)] * 2
    pauses = [
        w["until"] - w["since"] for e in entries if e.kind == "wait.started" and (w := e.payload["wait"]).get("until")
    ]
    assert [round(pause, 3) for pause in pauses] == [0.01, 0.02, 0.0]
