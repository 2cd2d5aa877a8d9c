"""A server that is killed leaves a run asleep in a microVM, and another one wakes it: at the same node, or at another
one, from the store that they share."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perdure.cli.perdure import _daemons
from perdure.cli.perdure._image import ensure_default
from perdure.client.node import NodeClient
from perdure.client.server import ServerClient
from perdure.gateway.offline_process import OfflineProcess
from perdure.host.paths import Home
from perdure.model import RunState
from perdure.testing.durable_runs import DEADLINE_S, Run
from perdure.testing.postgres import binaries, postgres_server

pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(600),
    pytest.mark.skipif(binaries() is None, reason="PostgreSQL is not installed (Debian: postgresql)"),
]

AGENT = """
import os
from perdure import agent

@agent
def counter(ctx):
    count = 1
    first = ctx.chat("Say one word about owls.", max_tokens=8)
    ctx.step("write", lambda: open("/notes", "a").write("written "))
    ctx.emit("state", [os.getpid(), count, open("/notes").read()])
    verdict = ctx.approval("Go on?", show=first.text)
    count += 1
    ctx.emit("state", [os.getpid(), count, open("/notes").read()])
    second = ctx.chat("Say one word about mice.", max_tokens=8)
    return [verdict.by, len(first.text) > 0, len(second.text) > 0]
"""


@pytest.fixture
def two(home: Home, client: NodeClient, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Home, Home]]:
    """The homes of two servers on one database, which use the first one's node; the first is up."""
    other = Home(Path(tempfile.mkdtemp(prefix="perdure-", dir="/tmp")), home.cache).make()
    for name in [name for name in os.environ if name.startswith("OPENAI_")]:
        monkeypatch.delenv(name)
    node_id = (home.root / "node.id").read_text()
    with postgres_server() as database:
        settings = {"DATABASE": database.url, "HEARTBEAT_S": "0.5", "LOST_S": "3", "PROVIDER": "offline"}
        settings |= {"NODE": str(home.root), "SNAPSHOTS": str(other.root / "shared")}
        for name, value in settings.items():
            monkeypatch.setenv(f"PERDURE_{name}", value)
        try:
            _daemons.start_server(home)
            yield home, other
        finally:
            for one in (home, other):
                _daemons._stop_server(one)
                OfflineProcess(one).stop()
            (home.root / "node.id").write_text(node_id)
    shutil.rmtree(other.root)


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_a_run_of_a_killed_server_wakes_where_it_was_at_another_one(two: tuple[Home, Home], is_elsewhere: bool) -> None:
    first, second = two
    client, image = ServerClient(first), ensure_default()
    started = client.start(image=image, source=AGENT, file="counter.py", function="counter")
    Run(first, started).wait_for("run.suspended")
    until(lambda: client.get(started.id).snapshots[-1]["store"])
    asked, sandbox = client.provider_requests(), client.get(started.id).sandbox_id
    os.kill(int(client.status()["pid"]), signal.SIGKILL)
    if is_elsewhere:  # for the second server it is another node, which has nothing of the run
        (first.root / "node.id").write_text("0123456789ab\n")
        NodeClient(first).remove(sandbox, force=True)
    _daemons.start_server(second)
    run = Run(second, started)
    until(lambda: len(run.server.servers()) == 1)
    run.server.approve(run.id, by="ann")
    info = run.ends()
    assert (info.state, info.result) == (RunState.COMPLETED, ["ann", True, True]), info
    assert (info.turns_asked, info.recoveries, info.suspends, info.epoch) == (2, 0, 1, 2)
    assert len(asked) == 1 and len(run.server.provider_requests()) == 1  # each was asked by one of them
    before, after = [entry.payload["value"] for entry in run.server.entries(run.id) if entry.kind == "emit"]
    assert after == [before[0], before[1] + 1, "written "] and before[2] == "written "
    kinds = run.kinds()
    assert kinds.count("run.resuming") == 1 and kinds.count("step.intent") == kinds.count("step.result") == 1
    assert info.node is not None and info.node.id == NodeClient(first).system()["id"]
    came_from = [entry.payload.get("store") for entry in run.server.entries(run.id) if entry.kind == "run.running"]
    assert [one for one in came_from if one] == ([str(second.root / "shared")] if is_elsewhere else [])
    run.server.verify(run.id)
    run.node = NodeClient(first)
    assert run.is_gone()
