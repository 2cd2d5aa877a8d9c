"""Tools on the replay road: what a model had done, in turn or at once, is not done again; in doubt a person is
asked."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from perdure.testing.house import Provider
from perdure.testing.workers import WorkerHouse

pytestmark = pytest.mark.timeout(60)

LOOP = """
import asyncio

def price(item: str) -> float:
    note("price")
    return 12.0

async def order(item: str, count: int) -> str:
    note("order")
    return f"{count} {item}"

def note(what):
    with open(LEDGER, "a") as file:
        file.write(what + "\\n")

async def f(ctx: AsyncContext):
    async def ask(question: str) -> str:
        return (await ctx.approval(question)).comment

    tools = [ctx.tool(price, effect="read-only"), ask, ctx.tool(order)]
    messages = [{"role": "user", "content": "owls"}]
    while (turn := await ctx.chat(messages, tools=tools)).tool_calls:
        messages += [turn.message, *await asyncio.gather(*map(ctx.use, turn.tool_calls))]
    return [message["content"] for message in messages if message["role"] == "tool"]
"""


async def test_what_was_done_at_once_is_heard_again(road: WorkerHouse, provider: Provider, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    run_id = await road.start(f"LEDGER = {str(ledger)!r}\n{LOOP}")
    await road.until(run_id, "run.suspended")  # nothing of it runs
    await road.engine.approve(run_id, None, approved=True, comment="white")
    assert await road.result(run_id) == ["12.0", "white", "2 owls"]
    assert provider.requests == 2 and sorted(ledger.read_text().split()) == ["order", "price"]


async def test_a_worker_that_is_killed_in_a_tool_of_once_asks_a_person(road: WorkerHouse, tmp_path: Path) -> None:
    road.settings = replace(road.settings, idle_grace_s=60.0)
    await road.down()
    await road.up()
    os.mkfifo(tmp_path / "pipe")
    source = f"""
        def act() -> str:
            open({str(tmp_path / "done")!r}, "a").write("x")
            return open({str(tmp_path / "pipe")!r}).read()

        def f(ctx: Context):
            return ctx.use(ctx.chat("hi", tools=[ctx.tool(act)]).tool_calls[0])["content"]
        """
    run_id = await road.start(source)
    await road.until(run_id, "step.intent")
    os.kill(road.worker(run_id), signal.SIGKILL)
    wait = (await road.until(run_id, "wait.started")).payload["wait"]
    assert wait["kind"] == "doubt"
    await road.engine.approve(run_id, wait["id"], approved=False)
    assert "a person decided not to repeat it" in await road.result(run_id)
