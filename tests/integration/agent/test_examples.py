"""The examples of docs/agents.md, typed in: SDK, calls, engine, log and gateway are the real ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from perdure.client import source
from perdure.model import RunState
from perdure.runs.record import StartRequest

from .conftest import House

pytestmark = pytest.mark.timeout(60)
EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture
async def provider_url() -> AsyncIterator[str]:
    async def answer(request: web.Request) -> web.Response:
        asked = (await request.json())["messages"][-1]["content"]
        message = {"role": "assistant", "content": f"Said of {asked.rpartition(' ')[2]}"}
        return web.json_response({"model": "tiny", "choices": [{"message": message, "finish_reason": "stop"}]})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    await runner.cleanup()


async def start(house: House, name: str, given: Any) -> str:
    agent = source.read(f"{EXAMPLES}/{name}")
    request = StartRequest(image="any", source=agent.source, file=agent.file, function=agent.function, input=given)
    return (await house.engine.start(request))[0].id


async def waits(house: House, run_id: str, count: int) -> None:
    """Until the run has begun so many waits."""
    async with asyncio.timeout(30), aclosing(house.log.follow(run_id)) as entries:
        async for entry in entries:
            count -= entry.kind == "wait.started"
            if not count:
                return


@pytest.mark.parametrize(
    ("signals", "result"),
    [
        ([("paid", 12, "payment-1"), ("paid", 12, "payment-1"), ("packed", None, None)], "owl sent: 12 asked, 12 paid"),
        ([("called off", None, None)], "called off"),
    ],
)
async def test_an_order(house: House, signals: list[tuple[str, Any, str | None]], result: str) -> None:
    run_id = await start(house, "order.py:order", {"item": "owl"})
    await waits(house, run_id, 1)
    await house.engine.approve(run_id, None, approved=True, values={"price": 12, "wrap": "paper"})
    await waits(house, run_id, 2)
    await house.machines.kill(run_id)
    for name, value, signal_id in signals:
        await house.engine.signal(run_id, name, value, signal_id)
    info = await house.engine.ended(run_id, 30)
    assert (info.state, info.result) == (RunState.COMPLETED, result), info.error


async def test_a_team(house: House) -> None:
    run_id = await start(house, "team.py:team", {"topics": ["owls", "cats"]})
    info = await house.engine.ended(run_id, 30)
    assert info.state is RunState.COMPLETED, info.error
    assert info.result == {"owls": "Said of owls?", "cats": "Said of cats?"}
    assert len(info.children) == 2
