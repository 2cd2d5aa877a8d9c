"""Servers that are processes, and small nodes: the run of a killed one, asleep in a machine, goes on at another one."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from perdure.host.paths import Home
from perdure.model import RunState, SandboxSpec
from perdure.testing.crash.node import SmallNode
from perdure.testing.fleet import Fleet, until
from perdure.testing.machines import Ask, Effect, Program
from perdure.testing.postgres import binaries, postgres_server

pytestmark = pytest.mark.skipif(binaries() is None, reason="PostgreSQL is not installed (Debian: postgresql)")

AGENT = {"source": "def main(ctx): ...", "file": "agent.py", "function": "main", "image": "image"}


class Nodes:
    """Two of them, and how often a machine came by each place of its program."""

    def __init__(self, folder: Path) -> None:
        self.came_by: list[str] = []
        self.homes = [Home(folder / f"node{number}", folder / "cache").make() for number in range(2)]
        self.all = [SmallNode(home, self._program) for home in self.homes]
        self.all[1].stores = self.all[0].stores

    def _program(self, spec: SandboxSpec) -> Program:
        def program() -> Generator[Any, Any, Any]:
            yield Ask("/v1/chat/completions", {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]})
            begun = yield Ask("step", {"name": "pay", "on_doubt": "ask"})
            if begun.value["status"] == "run":
                yield Effect(lambda: self.came_by.append("pays"))
                yield Ask("step/end", {"result": 1}, at=1)
            yield Effect(lambda: self.came_by.append("comes by"))
            yield Ask("wait", {"kind": "signal", "name": "go"})
            yield Ask("complete", {"result": "fine"})

        return program


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    made = Nodes(tmp_path)
    for node in made.all:
        await node.open()
    yield made
    for node in made.all:
        await node.close()


@pytest.fixture
async def two(tmp_path: Path, nodes: Nodes) -> AsyncIterator[Fleet]:
    """Servers that are not up yet."""
    with postgres_server() as database:
        made = Fleet(tmp_path, database, 2)
        yield made
        await asyncio.to_thread(made.close)


@pytest.mark.parametrize("way", ["node", "store", "log"])
async def test_a_run_of_a_killed_server_goes_on_from_what_the_next_one_reaches(
    two: Fleet, nodes: Nodes, way: str
) -> None:
    first, second = two.servers
    for server, home in ((first, nodes.homes[0]), (second, nodes.homes[0 if way == "node" else 1])):
        server.environ["PERDURE_NODE"] = str(home.root)
        if way == "store":
            server.environ["PERDURE_SNAPSHOTS"] = "s3://bucket/runs"
    await asyncio.to_thread(two.up)
    run_id = (await asyncio.to_thread(lambda: first.client.start(**AGENT))).id
    await eventually(lambda: first.client.get(run_id).state is RunState.SUSPENDED)
    if way == "store":
        await eventually(lambda: first.client.get(run_id).snapshots[-1]["store"])
    await asyncio.to_thread(first.kill)
    await eventually(lambda: len(second.client.servers()) == 1)
    await asyncio.to_thread(lambda: second.client.signal(run_id, "go", 1))
    assert await asyncio.to_thread(lambda: second.client.result(run_id, timeout_s=60)) == "fine"
    assert nodes.came_by == ["pays", "comes by", *(["comes by"] if way == "log" else [])]
    assert two.provider.asked["hello"] == 1
    info = await asyncio.to_thread(lambda: second.client.get(run_id))
    assert (info.turns_asked, info.recoveries) == (1, 1 if way == "log" else 0)
    await asyncio.to_thread(lambda: second.client.verify(run_id))
    own = nodes.all[0 if way == "node" else 1]
    assert info.node is not None and info.node.address.endswith(str(own._home.socket("fcrund")))
    assert {"node": "resume", "store": "fork", "log": "start"}[way] in own.done
    await asyncio.to_thread(first.up)  # it comes back, and is rid of what went on elsewhere
    await eventually(lambda: not any(node.sandboxes for node in nodes.all))


async def test_files_of_runs_at_two_servers_are_compared_by_any_until_one_is_lost(two: Fleet, nodes: Nodes) -> None:
    first, second = two.servers
    for server, home in zip(two.servers, nodes.homes, strict=True):
        server.environ["PERDURE_NODE"] = str(home.root)
    await asyncio.to_thread(two.up)
    runs = [(await asyncio.to_thread(lambda server=server: server.client.start(**AGENT))).id for server in two.servers]
    await eventually(lambda: all(second.client.get(run_id).state is RunState.SUSPENDED for run_id in runs))
    for run_id, node, text in zip(runs, nodes.all, (b"a\n", b"b\n"), strict=True):
        node.sandboxes[second.client.get(run_id).sandbox_id].files = {"/root/draft": text, "/root/same": b""}
    for server in two.servers:
        found = await asyncio.to_thread(lambda server=server: server.client.diff(*runs, files=True))
        assert found["problem"] is None
        assert [(one["path"], one["change"]) for one in found["files"]] == [
            ("/root/draft", "changed"),
            ("/root/same", "same"),
        ]
    words = [sys.executable, "-m", "perdure.cli.perdure", "diff", *runs, "--files", "/root/draft"]
    environ = {**os.environ, "PERDURE_HOME": str(second.home.root)}
    said = await asyncio.to_thread(
        lambda: subprocess.run(words, env=environ, capture_output=True, text=True, check=True).stdout
    )
    assert said.splitlines()[-2:] == ["-a", "+b"]
    await asyncio.to_thread(first.kill)
    await eventually(lambda: len(second.client.servers()) == 1)
    await eventually(lambda: second.client.servers()[0]["runs"] == 2)  # asleep there
    found = await asyncio.to_thread(lambda: second.client.diff(*runs, files=True))
    assert found["files"] is None and found["problem"]["code"] == "not-found"
    assert found["problem"]["message"].startswith(f"the files of run {runs[0]} are at node ")
    assert f"`perdure fork {runs[0]}`" in found["problem"]["hint"]


async def eventually(true: Callable[[], Any]) -> None:
    await asyncio.to_thread(until, true)
