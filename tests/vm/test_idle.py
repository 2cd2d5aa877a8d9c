"""Sandboxes that nobody uses go to sleep, and wake for whoever uses them, on the real Firecracker."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from perdure.client.node import NodeClient, ensure_running
from perdure.errors import Conflict
from perdure.host.paths import Home
from perdure.model import ExecSpec, NodeEvent, SandboxInfo, SandboxState

pytestmark = pytest.mark.vm
Fcrun = Callable[..., "subprocess.CompletedProcess[str]"]
Start = Callable[..., SandboxInfo]
Eventually = Callable[[Callable[[], object]], None]

AFTER_S = 2.0


def events_of(client: NodeClient, ref: str, kind: str) -> list[NodeEvent]:
    found = client.events(follow=False)
    return [event for event in found if event.sandbox_id == ref and event.kind == f"sandbox.{kind}"]


def test_an_idle_sandbox_sleeps_and_wakes_for_whoever_uses_it(
    home: Home, client: NodeClient, fcrun: Fcrun, start: Start, eventually: Eventually, tmp_path: Path
) -> None:
    ref = start("sleep", "infinity", name="idle", suspend_after_s=AFTER_S).id

    def sleeps() -> bool:
        return client.get(ref).state is SandboxState.SUSPENDED

    eventually(lambda: events_of(client, ref, "suspended"))
    assert events_of(client, ref, "suspended")[0].details["reason"] == "idle"
    with ThreadPoolExecutor(8) as pool:  # all at once: one resume
        said = list(pool.map(lambda n: client.run(ref, ExecSpec(command=["echo", str(n)])), range(8)))
    assert [out for _, out, _ in said] == [b"%d\n" % number for number in range(8)]
    assert [event.details.get("reason") for event in events_of(client, ref, "resumed")] == ["exec"]
    eventually(sleeps)
    (tmp_path / "file").write_text("hello")
    assert fcrun("cp", str(tmp_path / "file"), "idle:/file").returncode == 0
    eventually(sleeps)
    # an exec that lasts longer than that keeps it awake
    assert fcrun("exec", "idle", "sh", "-c", f"sleep {2 * AFTER_S:g}; cat /file").stdout == "hello"
    client.shutdown()  # the next node goes on with it
    ensure_running(home)
    eventually(sleeps)
    looked = fcrun("inspect", "-f", "{{.spec.suspend_after_s}} {{.state}}", "idle")
    assert looked.stdout == f"{AFTER_S:g} suspended\n"


def test_a_sandbox_that_works_stays_awake(client: NodeClient, start: Start, eventually: Eventually) -> None:
    busy = start("sh", "-c", "while ! [ -e /stop ]; do :; done; exec sleep infinity", suspend_after_s=AFTER_S).id
    talks = start("sh", "-c", "while sleep 0.3; do echo tick; done", suspend_after_s=AFTER_S).id
    threading.Event().wait(3 * AFTER_S)
    assert [client.get(ref).state for ref in (busy, talks)] == [SandboxState.RUNNING] * 2
    client.put_files(busy, {"/stop": b""})
    eventually(lambda: client.get(busy).state is SandboxState.SUSPENDED)


def test_one_that_nothing_is_to_wake(client: NodeClient, fcrun: Fcrun, start: Start) -> None:
    ref = start("sleep", "infinity", name="shut", wake_on=()).id
    client.suspend(ref)
    with pytest.raises(Conflict, match="suspended, not running"):
        client.run(ref, ExecSpec(command=["true"]))
    for command in (
        ("exec", "shut", "true"),
        ("exec", "-d", "shut", "true"),
        ("attach", "shut"),
        ("cp", "shut:/x", "-"),
    ):
        refused = fcrun(*command)
        assert refused.returncode == 125 and "fcrun resume shut" in refused.stderr, command
    client.resume(ref)
    assert client.run(ref, ExecSpec(command=["true"]))[0] == 0
