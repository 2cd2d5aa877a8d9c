"""Programs that know nothing of Perdure, in real microVMs: a shell script as an agent, a model that thinks."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from perdure.model import ExecSpec, RunState, SandboxState
from perdure.testing.durable_runs import Run, server, start_run

__all__ = ["server", "start_run"]

pytestmark = pytest.mark.vm

SCRIPT = """
set -eu
built=$(perdure-guest step build -- sh -c 'echo x >> /effects; echo built; exit 0')
echo "draft of what was $built" > /tmp/draft.md
comment=$(perdure-guest wait approval "Publish?" --show /tmp/draft.md --timeout 3d)
perdure-guest emit comment "$comment"
perdure-guest checkpoint --keep > /tmp/checkpoint
until [ -e /tmp/go ]; do sleep 0.2; done
again=$(perdure-guest step publish -- sh -c 'echo x >> /published; wc -l < /published')
echo "$comment: $built, $again, $(wc -l < /effects), $(cat /tmp/checkpoint)"
perdure-guest wait signal never --timeout 200ms && exit 9
exit $(($? + 5))
"""

TEAM = """
set -eu
echo x > /parent
form=$(perdure-guest wait approval "How many?" --field count=number --timeout 3d)
count=$(printf %s "$form" | perdure-guest get count)
twice=$(perdure-guest wait child -- sh -c "test ! -e /parent; perdure-guest wait time 1s; echo $count; echo $count")
came=$(perdure-guest wait any signal stop + time 9d)
echo $twice "$came"
perdure-guest wait child -- sh -c 'echo half; exit 3' || exit $(($? + 5))
"""

COMPLAINT = "perdure-guest: child run {}: the program ended with exit status 3\n"

THINKS = """
import json, os, urllib.request
body = {"messages": [{"role": "user", "content": "Count to one hundred."}], "max_tokens": 160}
request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", json.dumps(body).encode())
request.add_header("Content-Type", "application/json")
answer = json.load(urllib.request.urlopen(request))
print("it said", len(answer["choices"][0]["message"]["content"]) > 0)
"""


@pytest.mark.timeout(900)
def test_a_shell_script_waits_sleeps_and_outlives_its_machine(
    start_run: Callable[..., Run], kill_below: Callable[[int], None]
) -> None:
    run = start_run(command=["sh", "-c", SCRIPT])
    run.wait_for("run.suspended")
    info = run.info()
    assert info.waits[0]["show"] == "draft of what was built\n"
    assert run.node.get(info.sandbox_id).state is SandboxState.SUSPENDED
    run.server.approve(run.id, comment="go on", by="ann")
    run.wait_for("emit")
    checkpoint = run.wait_for("snapshot", 2)
    assert checkpoint.payload["checkpoint"]
    digest = checkpoint.payload["snapshot"]["digest"]
    kill_below(run.node.get(info.sandbox_id).machine["firecracker_pid"])
    assert run.wait_for("run.recovering").payload["cause"] == "machine-died"
    went_on = run.wait_for("run.running", after=run.wait_for("run.recovering").seq)
    assert went_on.payload["from"] == digest
    assert run.node.run(info.sandbox_id, ExecSpec(command=["touch", "/tmp/go"]))[0] == 0
    info = run.ends()
    assert info.state is RunState.FAILED and info.error is not None  # with its own exit status: 2, timed out, and 5
    details = info.error["details"]
    assert details["exit_status"] == 7
    assert details["output"] == f"go on: built, 1, 1, {digest}\n"
    assert (info.recoveries, info.suspends) == (1, 1)
    assert [one["keep"] for one in info.snapshots] == [False, True]
    assert run.kinds().count("run.starting") == 1
    assert run.is_gone()


@pytest.mark.timeout(900)
def test_a_shell_script_with_a_form_children_and_a_set(start_run: Callable[..., Run]) -> None:
    run = start_run(command=["sh", "-c", TEAM])
    run.wait_for("run.suspended")
    assert run.info().waits[0]["form"][0]["name"] == "count"
    run.server.approve(run.id, values={"count": 21})
    run.wait_for("wait.completed", 2)  # the first child has ended
    run.server.signal(run.id, "stop", "now")
    info = run.ends()
    assert info.state is RunState.FAILED and info.error is not None
    details = info.error["details"]
    kids = {kid.state: kid for kid in (run.server.get(kid) for kid in info.children)}
    assert all(kid.parent == run.id for kid in kids.values())
    assert kids[RunState.COMPLETED].result == {"exit_status": 0, "output": "21\n21\n"}
    complaint = COMPLAINT.format(kids[RunState.FAILED].id)
    said = ["21 21 0 now\n", *sorted(["half\n", complaint])]  # to stdout, and to stderr
    lines = details["output"].splitlines(keepends=True)
    assert (details["exit_status"], [lines[0], *sorted(lines[1:])]) == (6, said)
    assert run.is_gone()


@pytest.mark.timeout(600)
def test_a_machine_sleeps_while_a_model_thinks(start_run: Callable[..., Run]) -> None:
    run = start_run(command=["python3", "-c", THINKS], policy={"think_grace_s": 0.2})
    assert run.wait_for("run.suspending").payload["thinking"] == ["auto/1"]
    run.wait_for("run.resuming")
    info = run.ends()
    assert info.state is RunState.COMPLETED, info
    assert info.result["output"] == "it said True\n"
    assert (info.turns_asked, info.suspends, info.recoveries) == (1, 1, 0)
    assert len(run.server.provider_requests()) == 1
    assert run.is_gone()


@pytest.mark.timeout(600)
def test_perdure_guest_cannot_be_written(start_run: Callable[..., Run]) -> None:
    """It is guestd's own file: root in the machine may run it, and nothing else; plain commands find it by PATH."""
    attempts = [f"{how} /run/perdure/perdure-guest" for how in ("echo x >", "rm", "cp /bin/sh", "ln -sf /bin/sh")]
    tried = "; ".join(f"({attempt}) 2>/dev/null && echo written" for attempt in attempts)
    run = start_run(command=["sh", "-c", f"{tried}; perdure-guest --help | head -1; command -v perdure-guest"])
    info = run.ends()
    assert info.state is RunState.COMPLETED, info
    shown = "perdure-guest: what a program asks of the host of its run, from a shell\n/run/perdure/perdure-guest\n"
    assert info.result["output"] == shown
    assert run.is_gone()
