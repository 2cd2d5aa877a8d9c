"""A model's way through a sandbox by MCP, on the real Firecracker: the SDK's own client, ``perdure mcp`` on stdio."""

from __future__ import annotations

import base64
import json
import os
import sys
from typing import Any

import pytest

pytest.importorskip("mcp", reason="mcp is not installed")

from mcp import Client, StdioServerParameters
from mcp.types import TextContent

from perdure.client.node import NodeClient
from perdure.host.paths import Home

from .conftest import IMAGE

pytestmark = pytest.mark.vm
BYTES = bytes(range(256)) * 3


async def call(client: Client, tool: str, **arguments: Any) -> Any:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    return result.structured_content


async def refusal(client: Client, tool: str, **arguments: Any) -> str:
    result = await client.call_tool(tool, arguments)
    assert result.is_error and isinstance(result.content[0], TextContent)
    return result.content[0].text


async def test_a_model_works_in_sandboxes(home: Home, client: NodeClient) -> None:
    argv = ["-m", "perdure.cli.perdure", "mcp"]
    parameters = StdioServerParameters(command=sys.executable, args=argv, env=dict(os.environ))
    async with Client(parameters) as mcp:
        made = await call(mcp, "sandbox_create", image=IMAGE, name="owl", memory_mib=128, egress=["none"])
        assert (made["name"], made["state"]) == ("owl", "running")

        ran = await call(mcp, "sandbox_exec", sandbox="owl", command="cat; echo no >&2; exit 3", stdin="yes")
        assert ran == {"exit_status": 3, "stdout": "yes", "stderr": "no\n"}
        ran = await call(mcp, "sandbox_exec", sandbox="owl", command=["seq", "100000"], output_bytes=10)
        assert (ran["stdout"], ran["dropped_bytes"]) == ("1\n2\n3\n4\n5\n", 588885)
        ran = await call(mcp, "sandbox_exec", sandbox="owl", command="echo begun; exec sleep 600", timeout_s=15)
        assert (ran["exit_status"], ran["stdout"]) == (None, "begun\n")
        assert "command-not-found" in await refusal(mcp, "sandbox_exec", sandbox="owl", command=["hoot"])

        await call(mcp, "sandbox_write_file", sandbox="owl", path="/new/folder/a.txt", content="Schnee-Eule ❄")
        await call(mcp, "sandbox_exec", sandbox="owl", command="chmod 750 /new/folder/a.txt; ln -s folder/a.txt /new/b")
        read = await call(mcp, "sandbox_read_file", sandbox="owl", path="/new/b")
        assert (read["content"], read["encoding"], read["size_bytes"]) == ("Schnee-Eule ❄", "utf-8", 15)
        read = await call(mcp, "sandbox_read_file", sandbox="owl", path="/new/b", offset=7, limit=6)
        assert (read["content"], read["bytes"]) == ("Eule ", 5)  # a character that is cut is left for the next piece
        await call(mcp, "sandbox_write_file", sandbox="owl", path="/new/b", content="through the link")
        shown = await call(mcp, "sandbox_exec", sandbox="owl", command="stat -c %a /new/folder/a.txt; cat /new/b")
        assert shown["stdout"] == "750\nthrough the link"
        coded = base64.b64encode(BYTES).decode()
        written = {"content": coded, "encoding": "base64", "mode": "600"}
        await call(mcp, "sandbox_write_file", sandbox="owl", path="/bytes", **written)
        read = await call(mcp, "sandbox_read_file", sandbox="owl", path="/bytes")
        assert (read["content"], read["encoding"]) == (coded, "base64")
        assert "is no file" in await refusal(mcp, "sandbox_read_file", sandbox="owl", path="/new")
        assert "is a folder" in await refusal(mcp, "sandbox_write_file", sandbox="owl", path="/new", content="")

        beating = "i=0; while :; do i=$((i+1)); echo $i > /beat; sleep 0.1; done"
        await call(mcp, "sandbox_exec", sandbox="owl", command=beating, background=True)
        snapshot = (await call(mcp, "sandbox_checkpoint", sandbox="owl"))["digest"]
        await call(mcp, "sandbox_exec", sandbox="owl", command="touch /later")
        forks = (await call(mcp, "sandbox_fork", source=snapshot, count=2, name="chick"))["sandboxes"]
        assert [fork["name"] for fork in forks] == ["chick-1", "chick-2"]
        shown = await call(mcp, "sandbox_exec", sandbox="chick-1", command="ls /later /new/b")
        assert shown["stdout"] == "/new/b\n" and "/later" in shown["stderr"]

        slept = await call(mcp, "sandbox_suspend", sandbox="owl")
        listed = {one["name"]: one["state"] for one in (await call(mcp, "sandbox_list"))["sandboxes"]}
        assert listed == {"owl": "suspended", "chick-1": "running", "chick-2": "running"}
        goes_on = "a=$(cat /beat); sleep 1; [ $(cat /beat) != $a ]"
        shown = await call(mcp, "sandbox_exec", sandbox="owl", command=goes_on)
        assert shown["exit_status"] == 0  # it woke, and what ran in it goes on
        known = [one["digest"] for one in (await call(mcp, "sandbox_snapshots", sandbox="owl"))["snapshots"]]
        assert {snapshot, slept["digest"]} <= set(known)
        back = await call(mcp, "sandbox_resume", sandbox="owl", snapshot=snapshot)
        assert back["state"] == "running"
        shown = await call(mcp, "sandbox_exec", sandbox="owl", command=["ls", "/later"])
        assert shown["exit_status"] != 0

        for name in listed:
            assert (await call(mcp, "sandbox_remove", sandbox=name))["name"] == name
        assert client.list() == []
        assert "not-found" in await refusal(mcp, "sandbox_exec", sandbox="owl", command="ls")
        assert json.loads(json.dumps(await call(mcp, "sandbox_list"))) == {"sandboxes": []}
