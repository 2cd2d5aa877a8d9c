"""The MCP server as MCP clients find it: the SDK's own client, over stdio and HTTP, on a real perdured and fcrund."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

pytest.importorskip("mcp", reason="mcp is not installed")

import httpx2
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.types import TextContent

from perdure.testing.logservers import LogServer, running

DEADLINE_S = 60.0
COUNTS = """
from perdure import agent
from perdure.agent import AsyncContext


@agent(durability="replay")
async def counts(ctx: AsyncContext, upto: int):
    numbers = [await ctx.step("count", int, number) for number in range(upto)]
    verdict = await ctx.approval("Enough?", show=numbers)
    more = await ctx.wait_for("more")
    print("counted", flush=True)
    return [*numbers, verdict.comment, more]


@agent(durability="replay")
async def fails(ctx: AsyncContext):
    raise ValueError("no owls")
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LogServer]:
    with running(tmp_path_factory.mktemp("mcp")) as server:
        yield server


def environ(server: LogServer) -> dict[str, str]:
    home = {"PERDURE_HOME": str(server.home.root), "PERDURE_CACHE": str(server.home.cache)}
    return {**os.environ, **home}


def over_stdio(server: LogServer, mode: str = "auto") -> Client:
    argv = ["-m", "perdure.cli.perdure", "mcp"]
    return Client(StdioServerParameters(command=sys.executable, args=argv, env=environ(server)), mode=mode)


@asynccontextmanager
async def serving(server: LogServer, *more: str) -> AsyncIterator[dict[str, Any]]:
    """``perdure mcp --http``; what its file says."""
    argv = [sys.executable, "-m", "perdure.cli.perdure", "mcp", "--http", "127.0.0.1:0", *more]
    process = await asyncio.create_subprocess_exec(*argv, env=environ(server), stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = await asyncio.wait_for(process.stderr.readline(), DEADLINE_S)
    assert b"/mcp" in said, said + await process.stderr.read()
    (place,) = server.home.run.glob("mcp-*.json")
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    facts = json.loads(place.read_text())
    try:
        assert facts["url"] in said.decode() and facts["token"] not in said.decode()
        yield facts
    finally:
        process.send_signal(signal.SIGTERM)
        rest = await asyncio.wait_for(process.stderr.read(), DEADLINE_S)
        status = await asyncio.wait_for(process.wait(), DEADLINE_S)
    assert status == 0 and b"Traceback" not in rest and not place.exists(), rest


@asynccontextmanager
async def over_http(facts: dict[str, Any]) -> AsyncIterator[Client]:
    token = {"authorization": f"Bearer {facts['token']}"}
    async with (
        httpx2.AsyncClient(headers=token, timeout=DEADLINE_S) as http,
        Client(streamable_http_client(facts["url"], http_client=http)) as client,
    ):
        yield client


async def call(client: Client, tool: str, **arguments: Any) -> Any:
    """What a tool answers; the text that a model reads says the same."""
    result = await asyncio.wait_for(client.call_tool(tool, arguments), DEADLINE_S)
    assert not result.is_error, result.content
    (text,) = result.content
    assert isinstance(text, TextContent) and json.loads(text.text) == result.structured_content
    return result.structured_content


async def refusal(client: Client, tool: str, **arguments: Any) -> str:
    result = await asyncio.wait_for(client.call_tool(tool, arguments), DEADLINE_S)
    assert result.is_error, result.content
    (text,) = result.content
    assert isinstance(text, TextContent)
    return text.text


async def lives_of_a_run(client: Client) -> None:
    """All tools about runs, in the order in which a model would use them."""
    name = f"r-{uuid4().hex[:8]}"
    started = await call(
        client, "run_start", agent="counts.py:counts", source_text=COUNTS, input=3, name=name, key=name
    )
    again = await call(client, "run_start", agent="counts.py:counts", source_text=COUNTS, input=3, name=name, key=name)
    run = started["id"]
    assert again["id"] == run
    while not (told := await call(client, "run_result", run=name, timeout_s=0.1)).get("waits"):
        assert not told["ended"]
    (wait,) = told["waits"]
    assert (wait["kind"], wait["show"]) == ("approval", [0, 1, 2])
    assert name in [one.get("name") for one in (await call(client, "run_list"))["runs"]]
    log = (await call(client, "run_log", run=run, limit=1000))["entries"]
    assert [entry["seq"] for entry in log] == list(range(1, len(log) + 1))
    steps = (await call(client, "run_log", run=run, kind="step.", after=2, limit=2))["entries"]
    assert len(steps) == 2 and all(entry["kind"].startswith("step.") for entry in steps)

    sent = await call(client, "run_signal", run=run, name="more", value={"owls": 2}, id="once")
    assert sent["outcome"] == "kept"
    assert (await call(client, "run_signal", run=run, name="more", value=0, id="once"))["outcome"] == "duplicate"
    answered = await call(client, "run_approve", run=run, approved=True, comment="yes", by="ann")
    assert answered["id"] == wait["id"]
    told = await call(client, "run_result", run=run)
    assert (told["ended"], told["result"]) == (True, [0, 1, 2, "yes", {"owls": 2}])
    assert (await call(client, "run_output", run=run))["output"] == "counted\n"
    assert (await call(client, "run_status", run=run))["state"] == "completed"

    at = next(entry["seq"] for entry in log if entry["kind"] == "wait.started")
    forks = (await call(client, "run_fork", run=run, at=at, count=2))["runs"]
    assert len({fork["id"] for fork in forks} | {run}) == 3
    assert (await call(client, "run_rewind", run=run, to=at))["state"] != "completed"
    for one in (run, *(fork["id"] for fork in forks)):
        await call(client, "run_cancel", run=one, reason="enough", force=True)
        assert (await call(client, "run_result", run=one))["state"] == "cancelled"


async def test_a_client_on_stdio(server: LogServer) -> None:
    async with over_stdio(server) as client:
        await lives_of_a_run(client)


async def test_a_client_of_the_older_protocol(server: LogServer) -> None:
    """That shakes hands first, as all did before 2026."""
    async with over_stdio(server, mode="legacy") as client:
        assert (await call(client, "sandbox_list"))["sandboxes"] == []


async def test_clients_over_http(server: LogServer) -> None:
    async with serving(server) as facts, over_http(facts) as one, over_http(facts) as other:
        await asyncio.gather(lives_of_a_run(one), lives_of_a_run(other))


async def test_a_port_is_for_who_has_the_token(server: LogServer, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("given\n")
    hello = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    accepted = {"accept": "application/json, text/event-stream"}
    async with serving(server, "--token-file", str(tmp_path / "token")) as facts, httpx2.AsyncClient() as http:
        assert facts["token"] == "given"
        for headers in ({}, {"authorization": "Bearer other"}, {"authorization": "given"}):
            answer = await http.post(facts["url"], json=hello, headers={**accepted, **headers})
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
        token = {**accepted, "authorization": "Bearer given"}
        for lie, status in (({"host": "evil.example"}, 421), ({"origin": "https://evil.example"}, 403)):
            assert (await http.post(facts["url"], json=hello, headers={**token, **lie})).status_code == status
        for scheme in ("Bearer", "bearer"):  # RFC 9110, 11.1
            shown = {**accepted, "authorization": f"{scheme} given"}
            assert (await http.post(facts["url"], json=hello, headers=shown)).status_code == 400  # it began no session
        async with over_http(facts) as client:
            assert await client.list_tools()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--http", "0.0.0.0:0"], "without TLS its token would be read"),
        (["--http", "127.0.0.1"], "is not HOST:PORT"),
        (["--http", "127.0.0.1:99999"], "is not HOST:PORT"),
        (["--token-file", "x"], "--token-file is for --http"),
        (["--http", "127.0.0.1:0", "--token-file", "/nowhere"], "/nowhere"),
        (["--http", "127.0.0.1:0", "--token-file", "/dev/null"], "no token is in it"),
    ],
)
def test_what_is_mistyped_is_told(server: LogServer, argv: list[str], said: str) -> None:
    words = [sys.executable, "-m", "perdure.cli.perdure", "mcp", *argv]
    ended = subprocess.run(words, env=environ(server), capture_output=True, text=True, timeout=DEADLINE_S)
    assert ended.returncode == 2 and said in ended.stderr


async def test_tools_that_wait_hold_up_neither_others_nor_the_end(server: LogServer) -> None:
    async with serving(server) as facts, over_http(facts) as client:
        run = await call(client, "run_start", agent="counts.py:counts", source_text=COUNTS, input=0)
        wait = {"run": run["id"], "timeout_s": 600}
        waiting = [asyncio.create_task(client.call_tool("run_result", wait)) for _ in range(50)]
        assert await call(client, "run_list")
        for one in waiting:
            one.cancel()
        await call(client, "run_cancel", run=run["id"], force=True)


async def test_errors_are_for_a_model_to_read(server: LogServer) -> None:
    async with over_stdio(server) as client:
        assert (await refusal(client, "sandbox_exec", sandbox="nobody", command="ls")).startswith("not-found: ")
        assert "not-found" in await refusal(client, "run_status", run="nobody")
        no_agent = await refusal(client, "run_start", agent="x.py:other", source_text=COUNTS)
        assert "has no function 'other'" in no_agent and "its agents are: counts, fails" in no_agent
        assert "needs an image" in await refusal(client, "run_start", command=["ls"])
        assert "absolute path" in await refusal(client, "sandbox_write_file", sandbox="x", path="a", content="")
        assert "no base64" in await refusal(
            client, "sandbox_write_file", sandbox="x", path="/a", content="?", encoding="base64"
        )
        assert "timeout_s" in await refusal(client, "sandbox_exec", sandbox="x", command="ls", timeout_s=-1)
        failed = await call(client, "run_start", agent="x.py:fails", source_text=COUNTS)
        told = await call(client, "run_result", run=failed["id"])
        assert told["state"] == "failed" and "no owls" in told["error"]["message"], told


async def test_a_server_that_is_away_is_told_and_found_again(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        async with over_stdio(server) as client:
            assert (await call(client, "run_list"))["runs"] == []
            server.kill()
            away = await refusal(client, "run_list")
            assert away.startswith("unavailable: ") and "perdure up" in away
            server.start()
            assert (await call(client, "run_list"))["runs"] == []


async def test_each_tool_says_what_it_does(server: LogServer) -> None:
    async with over_stdio(server) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    wanted = {
        "sandbox": "create list exec read_file write_file suspend resume checkpoint snapshots fork remove",
        "run": "start list status result log output signal approve checkpoint fork rewind cancel",
    }
    assert set(tools) == {f"{about}_{verb}" for about, verbs in wanted.items() for verb in verbs.split()}
    for name, tool in tools.items():
        assert tool.description and tool.annotations is not None, name
        assert all(
            parameter.get("description") or parameter["title"] for parameter in tool.input_schema["properties"].values()
        )
    looks = {name for name, tool in tools.items() if tool.annotations and tool.annotations.read_only_hint}
    assert looks == {
        *("sandbox_list", "sandbox_read_file", "sandbox_snapshots", "run_list", "run_status", "run_result"),
        *("run_log", "run_output"),
    }
