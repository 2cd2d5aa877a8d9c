"""Durable runs in real microVMs, with a real server process and a real (small) model: kill -9 of each part."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from perdure.errors import Conflict
from perdure.host.paths import Home
from perdure.model import ExecSpec, RunState, SandboxState
from perdure.testing.durable_runs import Run, kill_server, server, start_run

__all__ = ["server", "start_run"]

pytestmark = pytest.mark.vm
CAUSES = {"keeper_pid": "keeper-died", "pager_pid": "pager-died"}

AGENT = """
import os
from perdure import agent

@agent()
def counter(ctx, topic):
    count = 1
    first = ctx.chat(f"Say one word about {topic}.", max_tokens=8)
    open("/notes", "w").write(first.text)
    ctx.emit("state", [os.getpid(), count, open("/notes").read()])
    verdict = ctx.approval("Go on?", show=first.text)
    count += 1
    ctx.emit("state", [os.getpid(), count, open("/notes").read()])
    second = ctx.chat("Count to one hundred.", max_tokens=120, on_delta=lambda text: None)
    lines = ctx.step("count", lambda: 1)
    return [verdict.comment, len(second.text) > 0, lines]
"""

SUMS = """
import os, time
from perdure import agent

@agent()
def sums(ctx):
    total = 0
    while number := ctx.wait_for("number"):
        total += number
        ctx.emit("total", total)
        ctx.step(f"hold {total}", hold, total)
    return total

def hold(total):
    while not os.path.exists(f"/go{total}"):
        time.sleep(0.05)
"""

UNMODIFIED = """
import json, os, urllib.request
body = json.dumps({"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8}).encode()
request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", body)
request.add_header("Content-Type", "application/json")
answer = json.load(urllib.request.urlopen(request))
print("it said", len(answer["choices"][0]["message"]["content"]) > 0)
"""


@pytest.mark.timeout(600)
def test_an_agent_outlives_its_server_and_its_vm(
    home: Home, start_run: Callable[..., Run], kill_below: Callable[[int], None]
) -> None:
    run = start_run(source=AGENT, file="counter.py", function="counter", input={"topic": "owls"})
    run.wait_for("run.suspended")
    info = run.info()
    sandbox = run.node.get(info.sandbox_id)
    assert sandbox.state is SandboxState.SUSPENDED
    assert sandbox.snapshot is not None
    assert sandbox.snapshot.position is not None
    assert sandbox.snapshot.position.seq == run.kinds().index("run.suspending") + 1
    kill_server(home)
    assert run.info().state is RunState.SUSPENDED
    run.server.approve(run.id, comment="go on", by="ann")
    with pytest.raises(Conflict, match="answered already: approved by ann"):
        run.server.approve(run.id)
    run.wait_for("model.started", 2)
    machine = run.node.get(info.sandbox_id).machine
    kill_below(machine["firecracker_pid"])
    assert run.wait_for("run.recovering").payload["cause"] == "machine-died"
    info = run.ends()
    assert (info.state, info.result) == (RunState.COMPLETED, ["go on", True, 1]), info
    assert (info.turns_asked, info.recoveries, info.epoch) == (2, 1, 3)
    assert len([r for r in run.server.provider_requests() if r]) == 2
    first, second = [entry.payload["value"] for entry in run.server.entries(run.id) if entry.kind == "emit"]
    assert (second[0], second[1], second[2]) == (first[0], first[1] + 1, first[2])
    assert run.server.verify(run.id)["entries"] == len(run.kinds())
    assert run.is_gone()


@pytest.mark.timeout(600)
def test_a_killed_node_is_not_noticed(home: Home, start_run: Callable[..., Run]) -> None:
    run = start_run(source=AGENT, file="counter.py", function="counter", input={"topic": "owls"})
    run.wait_for("model.started")
    os.kill(run.node.system()["pid"], signal.SIGKILL)
    run.wait_for("run.suspended")
    run.server.approve(run.id, approved=True)
    info = run.ends()
    assert (info.state, info.recoveries, info.turns_asked) == (RunState.COMPLETED, 0, 2), info
    assert run.is_gone()


@pytest.mark.timeout(600)
def test_a_run_outlives_its_keeper_and_its_pager(
    start_run: Callable[..., Run], kill_below: Callable[[int], None]
) -> None:
    """In the middle of a step, which is done again; each signal counts once."""
    run = start_run(source=SUMS, file="sums.py", function="sums")
    total = 0
    for number, victim in enumerate(("keeper_pid", "pager_pid"), 1):
        run.wait_for("run.suspended", number)
        run.server.signal(run.id, "number", number)
        total += number
        begun = run.wait_for("step.intent", 2 * number - 1)
        assert (begun.payload["name"], begun.payload["attempt"]) == (f"hold {total}", 1)
        kill_below(run.node.get(run.info().sandbox_id).machine[victim])
        assert run.wait_for("run.recovering", number).payload["cause"] == CAUSES[victim]
        assert run.wait_for("step.intent", 2 * number).payload["attempt"] == 2
        assert run.node.run(run.info().sandbox_id, ExecSpec(command=["touch", f"/go{total}"]))[0] == 0
    run.wait_for("run.suspended", 3)
    run.server.signal(run.id, "number", 0)
    info = run.ends()
    assert (info.state, info.result, info.recoveries) == (RunState.COMPLETED, 3, 2), info
    assert run.kinds().count("emit") == 2
    assert run.is_gone()


@pytest.mark.timeout(600)
def test_a_server_or_node_that_dies_within_a_suspend_or_a_resume(home: Home, start_run: Callable[..., Run]) -> None:
    run = start_run(source=SUMS.replace("os.path.exists", "bool"), file="sums.py", function="sums")

    def kill_node() -> None:
        os.kill(run.node.system()["pid"], signal.SIGKILL)

    at = 0
    for number, kill in enumerate((kill_node, lambda: kill_server(home)), 1):
        at = run.wait_for("run.suspending", after=at).seq
        kill()
        at = run.wait_for("run.suspended", after=at).seq
        run.server.signal(run.id, "number", number)
        at = run.wait_for("run.resuming", after=at).seq
        kill()
        at = run.wait_for("emit", after=at).seq
    run.wait_for("run.suspended", after=at)
    run.server.signal(run.id, "number", 0)
    info = run.ends()
    assert (info.state, info.result) == (RunState.COMPLETED, 3), info
    assert run.kinds().count("emit") == 2
    assert run.server.verify(run.id)["entries"] == len(run.kinds())
    assert run.is_gone()


@pytest.mark.timeout(600)
def test_an_unmodified_program(start_run: Callable[..., Run]) -> None:
    run = start_run(command=["python3", "-c", UNMODIFIED])
    info = run.ends()
    assert info.state is RunState.COMPLETED, info
    assert info.result == {"exit_status": 0, "output": "it said True\n"}
    assert info.turns_asked == 1
    assert run.is_gone()


@pytest.mark.timeout(600)
def test_programs_and_commands_that_fail(start_run: Callable[..., Run]) -> None:
    info = start_run(command=["sh", "-c", "echo broken >&2; exit 3"]).ends()
    assert (info.state, info.error["code"] if info.error else "") == (RunState.FAILED, "program-failed")
    assert info.error is not None
    assert info.error["details"] == {"exit_status": 3, "output": "broken\n"}
    info = start_run(command=["no-such-program"]).ends()
    assert info.error is not None
    assert info.error["code"] == "command-not-found", info
