"""Sessions of the OpenAI Agents SDK on real microVMs: its own life of a session, and its own agent with a shell."""

from __future__ import annotations

import asyncio
import io
import json
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

pytest.importorskip("agents.sandbox", reason="openai-agents is not installed")

from agents import Model, ModelResponse, RunConfig, Runner, Usage
from agents.sandbox import LocalSnapshotSpec, Manifest, SandboxAgent, SandboxRunConfig
from agents.sandbox.capabilities import Shell
from agents.sandbox.entries import File
from agents.sandbox.errors import (
    ExecTimeoutError,
    ExecTransportError,
    InvalidManifestPathError,
    WorkspaceReadNotFoundError,
)
from agents.sandbox.session.sandbox_session import SandboxSession
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText

from perdure.client.node import NodeClient
from perdure.integrations.openai_sandbox import PerdureSandboxClient, PerdureSandboxOptions
from perdure.model import SandboxState

from .conftest import IMAGE

pytestmark = pytest.mark.vm
OPTIONS = PerdureSandboxOptions(image=IMAGE, memory_mib=128, egress=("none",))
BEATS = "(i=0; while :; do i=$((i+1)); echo $i > /new; mv /new /beat; sleep 0.1; done) >/dev/null 2>&1 &"
GOES_ON = "a=$(cat /beat); sleep 1; [ $(cat /beat) != $a ]"

Run = Callable[..., Awaitable[str]]


async def run(session: SandboxSession, line: str, **how: Any) -> str:
    ended = await session.exec(line, **how)
    assert ended.ok(), ended.stderr
    return ended.stdout.decode()


async def test_the_life_of_a_session(client: NodeClient, tmp_path: Path) -> None:
    sdk = PerdureSandboxClient(client)
    manifest = Manifest(entries={"notes/a.txt": File(content=b"owls")})
    session = await sdk.create(
        manifest=manifest, snapshot=LocalSnapshotSpec(base_path=tmp_path / "snapshots"), options=OPTIONS
    )
    async with session:
        assert await session.running()
        assert await run(session, "pwd; cat notes/a.txt") == "/workspace\nowls"
        ended = await session.exec("cat >&2 nothing; exit 3")
        assert (ended.exit_code, b"nothing" in ended.stderr) == (3, True)
        with pytest.raises(ExecTimeoutError):
            await session.exec("sleep 600", timeout=2)
        assert (await session.exec("hoot", shell=False)).exit_code == 127

        await session.write(Path("new/b.bin"), io.BytesIO(bytes(range(256))))
        assert (await session.read(Path("new/b.bin"))).read() == bytes(range(256))
        assert await session.read_bounded(Path("new/b.bin"), max_bytes=3) == b"\0\1\2"
        with pytest.raises(WorkspaceReadNotFoundError):
            await session.read(Path("nothing"))
        await run(session, "ln -s /etc/passwd out; chmod 777 .")
        with pytest.raises(InvalidManifestPathError):
            await session.read(Path("out"))
        await session.write(Path("nobodys"), io.BytesIO(b"own"), user="nobody")
        assert await run(session, "stat -c %U nobodys; rm out") == "nobody\n"
        assert await run(session, "id -un", user="nobody") == "nobody\n"
        assert {entry.path.rsplit("/", 1)[-1] for entry in await session.ls("new")} >= {"b.bin"}
        await run(session, BEATS)
    (info,) = client.list()
    assert info.state is SandboxState.SUSPENDED and not await session.running()

    state = sdk.deserialize_session_state(json.loads(json.dumps(sdk.serialize_session_state(session.state))))
    async with await PerdureSandboxClient(client).resume(state) as again:
        await run(again, GOES_ON)  # the process that was there lives on
        assert (await again.read(Path("new/b.bin"))).read() == bytes(range(256))
        await run(again, "rm -r notes; echo later > new/later")

    client.remove(info.id, force=True)  # what is left is the SDK's snapshot
    async with await sdk.resume(sdk.deserialize_session_state(sdk.serialize_session_state(again.state))) as third:
        assert third.state.sandbox_id != info.id  # type: ignore[attr-defined]
        assert await run(third, "cat new/later; ls") == "later\nnew\nnobodys\n"
    await sdk.delete(third)
    await sdk.delete(third)  # as often as one likes
    assert client.list() == []
    with pytest.raises(ExecTransportError, match="no such sandbox"):
        await third.exec("true")


async def test_a_session_is_forked_and_taken_back_with_all_that_runs_in_it(client: NodeClient) -> None:
    sdk = PerdureSandboxClient(client)
    async with await sdk.create(options=OPTIONS) as session:
        await run(session, BEATS + " echo one > a")
        digest = await sdk.checkpoint(session)
        await run(session, "echo two > a")
        forks = await sdk.fork(session, 2)
        for number, fork in enumerate(forks):
            async with fork:
                await run(fork, GOES_ON)
                assert await run(fork, f"cat a; echo {number} > a") == "two\n"
        await sdk.rewind(session, digest)
        assert await run(session, "cat a") == "one\n"
        await run(session, GOES_ON)
        async with forks[1]:  # it slept, and goes on
            assert await run(forks[1], "cat a") == "1\n"
            await run(forks[1], GOES_ON)
        for one in (session, *forks):
            await sdk.delete(one)
    assert client.list() == []


async def test_the_page_shows_what_is_so(client: NodeClient, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "integrations.md").read_text()
    pattern = r"^## OpenAI Agents SDK: sandboxes\n.*?^```python\n(.*?)^```\n\n((?:    [^\n]*\n)+)"
    shown = re.search(pattern, page, flags=re.M | re.S)
    assert shown is not None
    (tmp_path / "example.py").write_text(shown[1])
    words = [sys.executable, str(tmp_path / "example.py")]
    ended = await asyncio.to_thread(subprocess.run, words, capture_output=True, text=True, timeout=240)
    assert (ended.returncode, ended.stdout) == (0, re.sub(r"^    ", "", shown[2], flags=re.M)), ended.stderr
    assert client.list() == []


class Works(Model):
    """A model that writes a file by the shell tool, reads it, and says what is in it."""

    async def get_response(self, *args: Any, **given: Any) -> ModelResponse:
        items = given.get("input", args[1] if len(args) > 1 else [])
        told = [item["output"] for item in items if isinstance(item, dict) and item.get("type", "").endswith("_output")]
        if len(told) == 2:
            text = ResponseOutputText(annotations=[], text=str(told[-1]), type="output_text")
            said = ResponseOutputMessage(
                id=str(uuid4()), content=[text], role="assistant", status="completed", type="message"
            )
            return ModelResponse(output=[said], usage=Usage(), response_id=None)
        line = json.dumps({"cmd": ("echo the owl sees > seen.txt", "cat seen.txt")[len(told)]})
        call = ResponseFunctionToolCall(
            arguments=line, call_id=str(uuid4()), name="exec_command", type="function_call", id=str(uuid4())
        )
        return ModelResponse(output=[call], usage=Usage(), response_id=None)

    def stream_response(self, *args: Any, **given: Any) -> Any:
        raise NotImplementedError


async def test_an_agent_of_the_sdk_works_in_a_microvm(client: NodeClient) -> None:
    sdk = PerdureSandboxClient(client)
    agent = SandboxAgent(name="owl", model=Works(), instructions="Look.", capabilities=[Shell()])
    config = RunConfig(sandbox=SandboxRunConfig(client=sdk, options=OPTIONS), tracing_disabled=True)
    result = await Runner.run(agent, "What do you see?", run_config=config)
    assert "the owl sees" in result.final_output
