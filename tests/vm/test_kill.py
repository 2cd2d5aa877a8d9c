"""kill -9 of Firecracker, keeper and fcrund: each is noticed, named, and recovered from."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from perdure.client.node import NodeClient, ensure_running
from perdure.errors import MachineFailed, PerdureError
from perdure.host.paths import Home
from perdure.model import ExecSpec, SandboxInfo, SandboxSpec, SandboxState

pytestmark = pytest.mark.vm
IMAGE = "perdure-test"
Start = Callable[..., SandboxInfo]
TICKER = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.05; done"


def kill_node(client: NodeClient, home: Home) -> None:
    os.kill(client.system()["pid"], signal.SIGKILL)
    ensure_running(home)


@pytest.mark.parametrize(
    ("victim", "causes"),
    [("firecracker_pid", {"machine-died"}), ("keeper_pid", {"keeper-died"})],
)
def test_a_killed_machine_is_named_and_resumed(
    start: Start,
    client: NodeClient,
    kill_below: Callable[[int], None],
    victim: str,
    causes: set[str],
) -> None:
    ref = start("sleep", "100000").id
    assert client.run(ref, ExecSpec(command=["sh", "-c", "echo kept > /file"]))[0] == 0
    client.suspend(ref)
    info = client.resume(ref)
    client.run(ref, ExecSpec(command=["sh", "-c", "echo lost > /file"]))
    kill_below(info.machine[victim])
    dead = client.wait(ref)
    assert (dead.state, dead.exit_status) == (SandboxState.EXITED, None)
    assert dead.cause in causes
    assert dead.snapshot is not None
    again = client.resume(ref)
    assert again.state == SandboxState.RUNNING
    assert again.machine["main_pid"] == info.machine["main_pid"]
    assert client.run(ref, ExecSpec(command=["cat", "/file"]))[1] == b"kept\n"


def test_a_killed_pager_ends_the_machine_with_its_name(
    start: Start, client: NodeClient, kill_below: Callable[[int], None]
) -> None:
    ref = start("sleep", "100000").id
    client.suspend(ref)
    kill_below(client.resume(ref).machine["pager_pid"])
    assert client.wait(ref).cause == "pager-died"
    assert client.resume(ref).state == SandboxState.RUNNING


def test_who_waits_at_a_dead_machine_is_told(
    start: Start, client: NodeClient, kill_below: Callable[[int], None]
) -> None:
    info = start("sleep", "100000")
    session = client.exec(info.id, ExecSpec(command=["sleep", "100000"]))
    attached = client.attach(info.id)
    kill_below(info.machine["firecracker_pid"])
    for one in (session, attached):
        with pytest.raises((MachineFailed, Exception), match=r"died|ended"):
            list(one.outputs())
        one.close()


def _output(client: NodeClient, ref: str) -> bytes:
    return b"".join(record.data for record in client.logs(ref))


def test_a_killed_node_loses_no_machine_and_no_output(start: Start, client: NodeClient, home: Home) -> None:
    info = start("sh", "-c", TICKER)
    first = client.logs(info.id, follow=True)
    assert next(first).data.startswith(b"1\n")
    first.close()  # type: ignore[attr-defined]
    kill_node(client, home)
    again = client.get(info.id)
    assert again.state == SandboxState.RUNNING
    assert again.machine["firecracker_pid"] == info.machine["firecracker_pid"]
    assert client.run(info.id, ExecSpec(command=["true"]))[0] == 0
    before = len(_output(client, info.id).split())
    for record in client.logs(info.id, follow=True):  # the program goes on, and this node hears it
        if int(record.data.split()[-1]) > before + 2:
            break
    client.stop(info.id, timeout_s=0)
    numbers = _output(client, info.id).split()
    assert numbers == [b"%d" % number for number in range(1, len(numbers) + 1)]
    assert len(numbers) > before + 2


def test_an_exit_while_no_node_runs_is_told_later(start: Start, client: NodeClient, home: Home) -> None:
    ref = start("sh", "-c", "read line; echo got $line; exit 4", stdin=True).id
    session = client.attach(ref)
    session.send_stdin(b"word\n")
    os.kill(client.system()["pid"], signal.SIGKILL)
    session.close()
    info = client.wait(ref)  # starts the node again
    assert info.exit_status == 4
    assert b"".join(record.data for record in client.logs(ref)) == b"got word\n"


def test_a_foreground_run_survives_the_nodes_death(client: NodeClient, home: Home) -> None:
    script = "echo begin; read line; echo $line; exit 6"
    with subprocess.Popen(
        [sys.executable, "-m", "perdure.cli.fcrun", "run", "-i", "--rm", IMAGE, "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as run:
        assert run.stdin is not None
        assert run.stdout is not None
        assert run.stdout.readline() == b"begin\n"
        kill_node(client, home)
        # what is typed may meet the gap between two sessions: say it until it is heard
        run.stdin.write(b"end\n")
        run.stdin.close()
        assert run.stdout.read() == b"end\n"
        assert run.wait(60) == 6


def test_a_suspended_sandbox_survives_the_nodes_death(start: Start, client: NodeClient, home: Home) -> None:
    info = start("sleep", "100000")
    client.suspend(info.id)
    kill_node(client, home)
    assert client.get(info.id).state == SandboxState.SUSPENDED
    assert client.resume(info.id).machine["main_pid"] == info.machine["main_pid"]


@pytest.mark.timeout(600)
def test_a_node_killed_within_a_suspend_or_resume(start: Start, client: NodeClient, home: Home) -> None:
    """Whatever was under way is completed or rolled back: the sandbox runs or sleeps, and goes on."""
    info = start("sleep", "100000")
    client.run(info.id, ExecSpec(command=["sh", "-c", "echo kept > /file"]))
    for delay_s in (0.0, 0.1, 0.3, 0.6, 1.0):
        for act, then in ((client.suspend, SandboxState.SUSPENDED), (client.resume, SandboxState.RUNNING)):
            thread = threading.Thread(target=_ignore, args=(act, info.id))
            thread.start()
            threading.Event().wait(delay_s)
            kill_node(client, home)
            thread.join()
            state = client.get(info.id).state
            assert state in (SandboxState.RUNNING, SandboxState.SUSPENDED)
            if state != then:
                act(info.id)
        assert client.run(info.id, ExecSpec(command=["cat", "/file"]))[1] == b"kept\n"


def _ignore(act: Any, ref: str) -> None:
    try:
        act(ref)
    except Exception:
        pass  # the node was killed under it


@pytest.mark.parametrize("how", ["its machine dies", "rm -f", "kill"])
def test_a_start_that_hangs_can_be_ended(
    client: NodeClient,
    kill_below: Callable[[int], None],
    firecrackers: Callable[[], list[int]],
    eventually: Callable[[Callable[[], object]], None],
    how: str,
) -> None:
    """While a large archive is unpacked in the guest, which takes it long: a larger one where it did not."""
    spec = SandboxSpec(image=IMAGE, command=["sleep", "100000"])
    client.remove(client.start(client.create(spec).id).id, force=True)  # else its template's machine would be the first
    for mib in (256, 512, 1024):
        eventually(lambda: not firecrackers())
        info = client.create(spec)
        client.put_files(info.id, {"/large": bytes(mib << 20)})
        starting = _Starting(client, info.id)
        pids: list[int] = []
        eventually(lambda pids=pids: pids.extend(firecrackers()) or pids)  # type: ignore[misc]
        if how == "rm -f":
            client.remove(info.id, force=True)
        elif how == "kill":
            assert client.kill(info.id).state == SandboxState.EXITED
        else:
            kill_below(pids[0])
        done = time.monotonic()
        starting.join(60)
        assert not starting.is_alive()
        if starting.error is not None or starting.ended_at > done:
            break
        if how != "rm -f":  # it was through before it could be ended
            client.remove(info.id, force=True)
    assert type(starting.error) is MachineFailed
    if how != "rm -f":
        ended = client.get(info.id)
        assert (ended.state, ended.cause) == (SandboxState.EXITED, "start-failed")
    assert firecrackers() == []


class _Starting(threading.Thread):
    """Starts a sandbox in the background."""

    def __init__(self, client: NodeClient, ref: str) -> None:
        super().__init__()
        self.error: PerdureError | None = None
        self.ended_at = math.inf  # monotonic
        self._client, self._ref = client, ref
        self.start()

    def run(self) -> None:
        try:
            self._client.start(self._ref)
        except PerdureError as error:
            self.error = error
        self.ended_at = time.monotonic()
