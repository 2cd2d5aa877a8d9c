"""The node's client in the server's threads."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

from aiohttp import web

from perdure.context import sqlite
from perdure.host.paths import Home
from perdure.model import CallsEndpoint
from perdure.runs.pack import Part
from perdure.runs.ports import MachinePlan
from perdure.server.machines import LABEL, THREADS, NodeMachines
from perdure.server.packages import Packages, own
from perdure.testing.packageindex import wheel

# A process of its own each time: msgspec learns types once. Without ``settle`` a third of them ended with SIGSEGV.
FIRST_ANSWERS = """
import sys, threading
from pathlib import Path
import msgspec
from perdure.host.paths import Home
from perdure.model import SandboxInfo
from perdure.server.machines import NodeMachines

machines = NodeMachines(Home(Path(sys.argv[1]), Path(sys.argv[1])))
sys.setswitchinterval(1e-6)
calls = {"url": "u", "run_id": "r", "epoch": 1, "token": "t"}
answer = {"id": "a", "name": "b", "spec": {"image": "x", "calls": calls}, "state": "running", "created": 1.0}
all_at_once = threading.Barrier(16)

def take():
    all_at_once.wait()
    msgspec.convert(answer, SandboxInfo)

threads = [threading.Thread(target=take) for _ in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
machines.close()
"""


def test_the_first_answers_may_come_in_many_threads_at_once(tmp_path: Path) -> None:
    for _ in range(12):
        done = subprocess.run([sys.executable, "-c", FIRST_ANSWERS, str(tmp_path)], timeout=60, check=False)
        assert done.returncode == 0


async def test_a_store_that_does_not_answer_holds_up_no_machine(tmp_path: Path) -> None:
    """A node of the test's own: each push hangs, and everything else is answered."""
    home = Home(tmp_path, tmp_path).make()
    begun, over = asyncio.Event(), asyncio.Event()

    async def node(request: web.Request) -> web.Response:
        if request.path.endswith("/push"):
            begun.set()
            await over.wait()
        return web.json_response([])

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", node)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(home.socket("fcrund"))).start()
    machines = NodeMachines(home)
    pushing = [asyncio.create_task(machines.push(f"sha256:{n:064}", "s3://away")) for n in range(2 * THREADS)]
    try:
        async with asyncio.timeout(20):
            await begun.wait()
            assert await machines.of_runs() == []
    finally:
        over.set()
        machines.close()
        await asyncio.gather(*pushing, return_exceptions=True)
        await runner.cleanup()


async def test_the_sandboxes_of_a_run_are_removed_without_a_look_at_all_others(tmp_path: Path) -> None:
    """A node of the test's own, which has many."""
    home, asked = Home(tmp_path, tmp_path).make(), list[str]()
    calls = {"url": "u", "run_id": "r", "epoch": 1, "token": "t"}
    spec = {"image": "x", "calls": calls, "labels": {LABEL: "r"}}

    async def node(request: web.Request) -> web.Response:
        asked.append(f"{request.method} {request.path_qs}")
        assert request.method == "DELETE" or request.query.get("label") == f"{LABEL}=r"
        return web.json_response([{"id": "a", "name": "b", "spec": spec, "state": "running", "created": 1.0}])

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", node)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(home.socket("fcrund"))).start()
    machines = NodeMachines(home)
    try:
        await machines.remove("r")
    finally:
        machines.close()
        await runner.cleanup()
    assert [one.partition("?")[0] for one in asked] == ["GET /v1/sandboxes", "DELETE /v1/sandboxes/a"]


async def test_the_sandboxes_of_runs_are_told_with_the_snapshots_that_they_have(tmp_path: Path) -> None:
    """By a node of the test's own."""
    home = Home(tmp_path, tmp_path).make()
    position = {"run_id": "r", "branch": 1, "seq": 7, "epoch": 2}
    shown = {"name": "b", "state": "running", "created": 1.0, "epoch": 2}
    held = [{"digests": ["sha256:new", "sha256:old"], "position": position}, {"digests": ["sha256:own"]}]
    ours = {"id": "a", "spec": {"image": "x", "labels": {LABEL: "r"}}, "held": held, **shown}

    async def node(request: web.Request) -> web.Response:
        return web.json_response([ours, {"id": "c", "spec": {"image": "x"}, **shown}])

    app = web.Application()
    app.router.add_get("/v1/sandboxes", node)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(home.socket("fcrund"))).start()
    machines = NodeMachines(home)
    try:
        (one,) = await machines.of_runs()
    finally:
        machines.close()
        await runner.cleanup()
    assert (one.id, one.run_id, one.epoch) == ("a", "r", 2)
    assert [(each.digests, each.position and each.position.seq) for each in one.snapshots] == [
        (["sha256:new", "sha256:old"], 7),
        (["sha256:own"], None),
    ]


async def test_what_an_agent_brings_along_goes_into_its_sandbox(tmp_path: Path) -> None:
    """Of a node of the test's own, before the sandbox is started."""
    home, log = Home(tmp_path, tmp_path).make(), await sqlite.open(tmp_path / "perdure.db")
    asked, files, made = list[str](), dict[str, bytes](), dict[str, Any]()

    async def node(request: web.Request) -> web.Response:
        asked.append(f"{request.method} {request.path}")
        if request.method == "PUT":
            with tarfile.open(fileobj=io.BytesIO(await request.read())) as tar:
                files.update({one.name: body.read() for one in tar if (body := tar.extractfile(one)) is not None})
        if request.method == "GET":
            return web.json_response([])
        if request.path == "/v1/sandboxes":
            made.update(await request.json())
        return web.json_response({"id": "a", "name": "b", "spec": {"image": "x"}, "state": "created", "created": 1.0})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", node)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(home.socket("fcrund"))).start()
    machines = NodeMachines(home)
    machines.packages = Packages(home, log, machines.python_of)
    content = wheel("owls", "1.0", {"owls/__init__.py": "X = 1"})
    part = Part(path="owls-1.0-py3-none-any.whl", digest=await log.put_blob(content))
    plan = MachinePlan(
        run_id="r", image="x", agent="x.py:f", source=b"S", modules={"near/y.py": b"Y"}, wheels=[part], python=own()
    )
    try:
        await machines.start(plan, CallsEndpoint(url="u", run_id="r", epoch=1, token="t"))
    finally:
        machines.close()
        await runner.cleanup()
        await log.close()
    assert asked[-1].endswith("/start")
    assert [one.partition(" ")[0] for one in asked] == ["GET", "POST", "PUT", "PUT", "POST"]
    assert made["env"]["PYTHONPATH"] == "/opt/perdure:/opt/perdure/packages"
    assert (files["opt/perdure/agents/x.py"], files["opt/perdure/agents/near/y.py"]) == (b"S", b"Y")
    assert files["opt/perdure/packages/owls/__init__.py"] == b"X = 1" and "opt/perdure/perdure/agent/run.py" in files
