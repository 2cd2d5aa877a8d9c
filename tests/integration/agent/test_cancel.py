"""What an agent's code sees of a cancel: real processes, sync and async."""

from __future__ import annotations

import asyncio

import pytest

from perdure.model import RunState
from perdure.runs.record import StartRequest

from .conftest import House

pytestmark = pytest.mark.timeout(60)

SYNC = """
from perdure import Cancelled, agent
@agent(image="any")
def f(ctx):
    try:
        try:
            ctx.approval("Sure?")
        except Exception:
            ctx.emit("caught as an Exception")
    except Cancelled as why:
        ctx.emit("told", str(why))
        ctx.step("undo", lambda: "undone")
        raise
"""
ASYNC = """
import asyncio
from perdure import Cancelled, agent
@agent(image="any")
async def f(ctx):
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(ctx.approval("Sure?"))
            group.create_task(asyncio.Event().wait())
    except* Cancelled as why:
        await ctx.emit("told", str(why.exceptions[0]))
        await ctx.step("undo", lambda: "undone")
        raise
"""


@pytest.fixture
async def provider_url() -> str:
    return "http://127.0.0.1:9/v1"  # nobody is asked


@pytest.mark.parametrize("text", [SYNC, ASYNC], ids=["sync", "async"])
async def test_cancelled_is_raised_once_and_what_is_asked_then_is_answered(house: House, text: str) -> None:
    request = StartRequest(image="any", source=text, file="x.py", function="f")
    info, _ = await house.engine.start(request)
    async with asyncio.timeout(30):
        async for entry in house.engine.follow(info.id, 0):
            if entry.kind == "wait.started":
                break
    await house.engine.cancel(info.id, "not needed")
    ended = await house.engine.ended(info.id, 20)
    assert ended.state is RunState.CANCELLED and ended.error is not None
    assert ended.error["message"] == "not needed"
    entries = await house.log.read(info.id)
    assert [(e.payload["name"], e.payload["value"]) for e in entries if e.kind == "emit"] == [("told", "not needed")]
    assert [e.payload["result"] for e in entries if e.kind == "step.result"] == ["undone"]
