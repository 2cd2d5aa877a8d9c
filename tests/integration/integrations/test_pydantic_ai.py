"""An agent of Pydantic AI in a function that runs again: its requests, tools and MCP calls are steps, done once.

On the replay road with real workers, which are killed; the files that a guest gets are imported as they are there.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from perdure.agent.bundle import sdk_files
from perdure.host.paths import Home
from perdure.model import RunState
from perdure.testing.workers import WorkerHouse

pytest.importorskip("pydantic_ai", reason="pydantic-ai-slim is not installed")

HEAD = """
import os
from perdure.agent import current
from perdure.integrations.pydantic_ai import PerdureDurability
from pydantic_ai import Agent, ModelRetry
from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import FunctionModel


def did(what):
    with open(LEDGER, "a") as file:
        file.write(what + "\\n")


def calls_of(*tools):
    return ModelResponse(parts=[ToolCallPart(name, given) for name, given in tools])


def told(messages):
    return ModelResponse(parts=[TextPart(" ".join(str(part.content) for part in messages[-1].parts))])
"""

TOOLS = """
def answer(messages, info):
    did("asked")
    return calls_of(("add", {"a": 1}), ("slow", {}), ("person", {})) if len(messages) == 1 else told(messages)


sums = Agent(FunctionModel(answer), name="sums", capabilities=[PerdureDurability()])


@sums.tool_plain
def add(a: int) -> int:
    did("added")
    return a + 1


@sums.tool_plain
async def slow() -> str:
    did("slow")
    return "slowly"


@sums.tool_plain(metadata={"perdure": False})
async def person() -> str:
    return (await current.context.approval("Really?")).comment


@agent
async def f(ctx: AsyncContext):
    first = await sums.run("sum")
    told = await ctx.wait_for("more")
    second = await sums.run("again", message_history=first.all_messages()[:0])
    return [first.output, told, second.output, first.run_id != second.run_id]
"""


@pytest.fixture
async def road(tmp_path: Path) -> AsyncIterator[WorkerHouse]:
    made = WorkerHouse(Home(tmp_path / "home", tmp_path / "cache"))
    made.settings = replace(made.settings, idle_grace_s=60.0)
    await made.up()
    yield made
    await made.down()


def lines(ledger: Path) -> list[str]:
    return sorted(ledger.read_text().split()) if ledger.exists() else []


async def killed(road: WorkerHouse, run_id: str, times: int = 1) -> None:
    """Its worker, and that is noticed."""
    os.kill(road.worker(run_id), signal.SIGKILL)
    await road.until(run_id, "run.recovering", times)


async def test_what_is_done_is_not_done_again(road: WorkerHouse, tmp_path: Path) -> None:
    """Killed while a person is asked by a tool, while a signal is waited for, and while a person is asked again."""
    ledger = tmp_path / "ledger"
    run_id = await road.start(f"LEDGER = {str(ledger)!r}\n" + HEAD + TOOLS)
    for time in (1, 2):
        await road.until(run_id, "wait.started", 2 * time - 1)
        await road.until(run_id, "step.result", 4 * time - 1)
        await killed(road, run_id, 2 * time - 1)
        await road.engine.approve(run_id, None, approved=True, comment=f"yes{time}")
        if time == 1:
            await road.until(run_id, "wait.started", 2)
            await killed(road, run_id, 2)
            await road.engine.signal(run_id, "more", 7)
    assert await road.result(run_id) == ["2 slowly yes1", 7, "2 slowly yes2", True]
    assert lines(ledger) == ["added"] * 2 + ["asked"] * 4 + ["slow"] * 2
    names = {entry.payload["name"] for entry in await road.entries(run_id, "step.intent")}
    assert "sums__model.request" in names and any(name.endswith("call_tool:add") for name in names)
    assert not any(name.endswith("call_tool:person") for name in names)


async def test_a_tool_may_ask_for_another_try_and_a_model_for_nothing(road: WorkerHouse, tmp_path: Path) -> None:
    source = """
def answer(messages, info):
    return calls_of(("guess", {"n": len(messages)})) if len(messages) < 5 else told(messages)


guesses = Agent(FunctionModel(answer), name="guesses", capabilities=[PerdureDurability()])


@guesses.tool_plain(retries=3)
def guess(n: int) -> str:
    if n < 3:
        raise ModelRetry("higher")
    return "right"


@agent
async def f(ctx: AsyncContext):
    return (await guesses.run("guess")).output
"""
    run_id = await road.start(f"LEDGER = {str(tmp_path / 'ledger')!r}\n" + HEAD + source)
    assert await road.result(run_id) == "right"


async def test_what_fails_is_told_as_a_step(road: WorkerHouse, tmp_path: Path) -> None:
    """With as many attempts as the capability says; what is caught is the same when it runs again."""
    source = """
from perdure.errors import StepFailed


def answer(messages, info):
    did("asked")
    raise ConnectionError("no owls")


owls = Agent(FunctionModel(answer), name="owls", capabilities=[PerdureDurability(model={"retries": 1, "backoff": 0})])


@agent
async def f(ctx: AsyncContext):
    try:
        await owls.run("hoot")
    except StepFailed as failure:
        await ctx.wait_for("go")
        return [failure.details["type"], "OSError" in failure.details["bases"]]
"""
    ledger = tmp_path / "ledger"
    run_id = await road.start(f"LEDGER = {str(ledger)!r}\n" + HEAD + source)
    await road.until(run_id, "wait.started")
    await killed(road, run_id)
    await road.engine.signal(run_id, "go", None)
    assert await road.result(run_id) == ["ConnectionError", True]
    assert lines(ledger) == ["asked"] * 2


async def test_a_function_that_is_no_coroutine_is_told(road: WorkerHouse, tmp_path: Path) -> None:
    source = """
owls = Agent(FunctionModel(lambda messages, info: told(messages)), name="owls", capabilities=[PerdureDurability()])


@agent
def f(ctx: Context):
    return owls.run_sync("hoot").output
"""
    run_id = await road.start(f"LEDGER = {str(tmp_path / 'ledger')!r}\n" + HEAD + source)
    info = await road.ends(run_id)
    assert info.state is RunState.FAILED and info.error is not None
    assert "Write `async def` under @agent" in info.error["message"]


async def test_calls_of_an_mcp_server_are_steps(road: WorkerHouse, tmp_path: Path) -> None:
    pytest.importorskip("fastmcp", reason="fastmcp-slim is not installed")
    ledger, server = tmp_path / "ledger", tmp_path / "server.py"
    server.write_text(f"""
from mcp.server.mcpserver import MCPServer

server = MCPServer("owls")


@server.tool()
def hoot(times: int) -> str:
    with open({str(ledger)!r}, "a") as file:
        file.write("hooted ")
    return "hu" * times


server.run("stdio")
""")
    source = f"""
from pydantic_ai.mcp import MCPToolset
from fastmcp.client.transports import StdioTransport


def answer(messages, info):
    return calls_of(("hoot", {{"times": 2}})) if len(messages) == 1 else told(messages)


owls = MCPToolset(StdioTransport({sys.executable!r}, [{str(server)!r}]), id="owls", init_timeout=60)
night = Agent(FunctionModel(answer), name="night", toolsets=[owls], capabilities=[PerdureDurability()])


@agent
async def f(ctx: AsyncContext):
    output = (await night.run("hoot")).output
    await ctx.wait_for("day")
    return output
"""
    run_id = await road.start(f"LEDGER = {str(ledger)!r}\n" + HEAD + source)
    await road.until(run_id, "wait.started")
    await killed(road, run_id)
    await road.engine.signal(run_id, "day", None)
    assert await road.result(run_id) == "huhu" and lines(ledger) == ["hooted"]


def test_a_guest_gets_it(tmp_path: Path) -> None:
    """What is put into a guest is enough for it, beside its framework."""
    for name, content in sdk_files().items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    program = "import perdure, perdure.integrations.pydantic_ai as found; print(perdure.__file__, found.__file__)"
    site = [path for path in sys.path if path and not (Path(path) / "perdure").is_dir()]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *site])}
    ended = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert all(path.startswith(str(tmp_path)) for path in ended.stdout.split())
