"""Tools under the real engine: the loop of examples/tools.py, and what is done in doubt by their declared effects."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from perdure.client import source
from perdure.model import Entry, RunState
from perdure.runs.record import StartRequest
from perdure.testing.scripted import ScriptedProvider
from perdure.testing.speeches import chat, chat_calls

from .conftest import House

pytestmark = pytest.mark.timeout(60)
EXAMPLE = Path(__file__).parents[3] / "examples" / "tools.py"


@pytest.fixture
async def model() -> AsyncIterator[ScriptedProvider]:
    made = ScriptedProvider()
    await made.open()
    yield made
    await made.close()


@pytest.fixture
async def provider_url(model: ScriptedProvider) -> str:
    return model.url


async def until(house: House, run_id: str, kind: str, times: int = 1) -> Entry:
    async with asyncio.timeout(30), aclosing(house.log.follow(run_id)) as entries:
        async for entry in entries:
            times -= entry.kind == kind
            if not times:
                return entry
    raise AssertionError(f"no {kind}")


async def test_the_example(house: House, model: ScriptedProvider) -> None:
    """A machine that is lost while a person is asked has nothing done again: neither a turn, nor an order."""
    order = ("order", {"item": "owls", "count": 2})
    turns = [
        chat_calls(("price", {"item": "owls"}), ("price", {"item": "dogs"})),
        chat_calls(order, ("ask", {"question": "White ones?"})),
        chat("Two owls."),
    ]
    model.acts = [model.says(turn) for turn in turns]
    agent = source.read(f"{EXAMPLE}:shop")
    request = StartRequest(
        image="any", source=agent.source, file=agent.file, function="shop", input={"wish": "two owls"}
    )
    run_id = (await house.engine.start(request))[0].id
    await until(house, run_id, "wait.started")
    await house.machines.kill(run_id)
    await until(house, run_id, "run.waiting", 2)
    await house.engine.approve(run_id, None, approved=True, comment="white, please")
    info = await house.engine.ended(run_id, 30)
    assert (info.state, info.result) == (RunState.COMPLETED, "Two owls."), info.error
    heard = [message["content"] for message in model.asked[-1]["messages"] if message["role"] == "tool"]
    assert heard == ["12.0", "KeyError: 'dogs'", "2 owls ordered", "white, please"]
    assert len(model.asked) == 3 and (house.machines.folder / "orders.txt").read_text() == "2 owls\n"
    assert "diverged" not in [entry.kind for entry in await house.log.read(run_id)]


IN_DOUBT = """
from perdure import agent
def act(what: str) -> str:
    with open("done", "a") as file:
        file.write("x")
    open("pipe").read()  # until the test says so
    return "acted"
@agent(image="any")
DEF f(ctx):
    act_once = ctx.tool(act, effect=EFFECT)
    turn = AWAIT ctx.chat("hi", tools=[act_once])
    return (AWAIT ctx.use(turn.tool_calls[0]))["content"]
"""


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    ("effect", "approved", "result"),
    [
        ("'read-only'", None, "acted"),
        ("'idempotent'", None, "acted"),
        ("'once'", True, "acted"),
        (
            "'once'",
            False,
            "InDoubt: step 'act' was begun on a machine that was lost: it may have taken",
        ),
        ("'once', on_doubt='fail'", None, None),
    ],
)
async def test_a_machine_that_is_lost_in_a_tool(
    house: House, model: ScriptedProvider, effect: str, approved: bool | None, result: Any, is_async: bool
) -> None:
    model.acts = [model.says(chat_calls(("act", {"what": "owls"})))]
    house.machines.folder.mkdir(exist_ok=True)
    pipe = house.machines.folder / "pipe"
    os.mkfifo(pipe)
    text = IN_DOUBT.replace("EFFECT", effect)
    text = text.replace("AWAIT", "await").replace("DEF", "async def") if is_async else text
    text = text.replace("AWAIT ", "").replace("DEF", "def")
    request = StartRequest(image="any", source=text, file="x.py", function="f")
    run_id = (await house.engine.start(request))[0].id
    await until(house, run_id, "step.intent")
    first = await asyncio.to_thread(pipe.open, "w")  # it has begun to read
    await house.machines.kill(run_id)
    first.close()
    done = house.machines.folder / "done"
    if approved is not None:
        wait = (await until(house, run_id, "wait.started")).payload["wait"]
        assert (wait["kind"], wait["show"]["args"]) == ("doubt", {"what": "owls"})
        assert done.read_text() == "x"
        await house.engine.approve(run_id, wait["id"], approved=approved)
    if result == "acted":
        (await asyncio.to_thread(pipe.open, "w")).close()
    info = await house.engine.ended(run_id, 30)
    assert done.read_text() == ("xx" if result == "acted" else "x")
    if result is None:
        assert info.state is RunState.FAILED and info.error is not None and info.error["code"] == "step-failed"
    else:
        assert info.state is RunState.COMPLETED and info.result.startswith(result), (info.error, info.result)
    assert len(model.asked) == 1
