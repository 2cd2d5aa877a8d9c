"""Suspend and resume on the real Firecracker: the same process goes on, with everything it had."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from perdure.client.node import NodeClient
from perdure.errors import IllegalTransition, MachineFailed, NotFound, Unavailable
from perdure.model import ExecSpec, LogPosition, SandboxInfo, SandboxState

pytestmark = pytest.mark.vm
Fcrun = Callable[..., "subprocess.CompletedProcess[str]"]
Start = Callable[..., SandboxInfo]
Converse = Callable[..., Any]
Ask = Callable[[Any, str], dict[str, Any]]


def test_the_same_process_goes_on(keeper: tuple[str, Any], ask: Ask, client: NodeClient, fcrun: Fcrun) -> None:
    ref, talk = keeper
    first = ask(talk, "one")
    snapshot = client.suspend(ref, position=LogPosition(run_id="r", branch=0, seq=7, epoch=1))
    info = client.get(ref)
    assert (info.state, info.machine) == (SandboxState.SUSPENDED, {})
    assert info.snapshot is not None
    assert info.snapshot.position == LogPosition(run_id="r", branch=0, seq=7, epoch=1)
    assert 0 < info.stored_bytes == snapshot.stored_bytes
    assert 0 < snapshot.pause_s < snapshot.total_s
    assert "Suspended" in fcrun("ps").stdout
    with pytest.raises(IllegalTransition, match="is suspended"):
        client.suspend(ref)
    talk.say("two")  # typed while nothing runs: it arrives after the resume
    resumed = client.resume(ref)
    assert resumed.state == SandboxState.RUNNING
    assert resumed.machine["phases"]["total_s"] > 0
    assert fcrun("inspect", "-f", "{{.machine.backend}}", ref).stdout == "uffd\n"  # from layers, by its pager
    second = ast.literal_eval(talk.hear())
    assert (second["word"], second["count"], second["pid"]) == ("two", 2, first["pid"])
    assert second["memory"] == first["next"]
    assert second["notes"] == "one\ntwo\n"
    third = ask(talk, "three")
    assert second["pipe"] + third["pipe"] == "unread"
    assert [state for state in talk.states if state in ("suspended", "running")] == ["suspended", "running"]


def test_the_clock_is_right_and_entropy_differs(keeper: tuple[str, Any], ask: Ask, client: NodeClient) -> None:
    ref, talk = keeper
    ask(talk, "one")
    digest = client.suspend(ref).digest
    client.resume(ref)
    before = time.time()
    first = ask(talk, "same")
    assert before - 2 <= first["time"] <= time.time() + 2
    client.resume(ref, snapshot=digest)  # the same memory once more
    session = client.attach(ref, logs=False)
    session.send_stdin(b"same\n")
    _, data = next(iter(session.outputs()))
    second = ast.literal_eval(data.decode())
    session.close()
    assert (second["count"], second["memory"]) == (first["count"], first["memory"])
    assert second["random"] != first["random"]


def test_an_interactive_exec_survives(start: Start, client: NodeClient, converse: Converse) -> None:
    ref = start("sleep", "100000").id
    talk = converse(client.exec(ref, ExecSpec(command=["sh"], tty=True, stdin=True, rows=40, columns=100)))
    talk.say("x=kept; stty size; echo pid $$")
    talk.hear_until("40 100")
    pid = talk.hear_until("pid ").split("pid ")[1]
    client.suspend(ref)
    client.resume(ref)
    talk.say("echo $x-$$-after")
    talk.hear_until(f"kept-{pid}-after")
    talk.say("exit 9")
    with pytest.raises(EOFError):
        while True:
            talk.hear()
    assert talk._session.exit_status == 9


def test_roll_back_of_a_running_sandbox(keeper: tuple[str, Any], ask: Ask, client: NodeClient) -> None:
    ref, talk = keeper
    first = ask(talk, "one")
    digest = client.suspend(ref).digest
    client.resume(ref)
    ask(talk, "lost")
    info = client.resume(ref, snapshot=digest)
    assert info.state == SandboxState.RUNNING
    status, notes, _ = client.run(ref, ExecSpec(command=["cat", "/notes"]))
    assert (status, notes) == (0, b"one\n")
    assert info.machine["main_pid"] == first["pid"]
    with pytest.raises(NotFound, match="no snapshot"):
        client.resume(ref, snapshot="sha256:" + "0" * 64)


def test_a_refused_suspend_loses_nothing(keeper: tuple[str, Any], ask: Ask, client: NodeClient, home: Any) -> None:
    """The store cannot be written: the suspend is refused, the sandbox goes on, and the next suspend works."""
    ref, talk = keeper
    first = ask(talk, "one")
    aside = home.store.rename(home.store.with_name("store-aside"))
    home.store.write_bytes(b"")  # a file where the folder was
    try:
        with pytest.raises(Unavailable, match="could not be stored"):
            client.suspend(ref)
    finally:
        home.store.unlink()
        aside.rename(home.store)
    second = ask(talk, "two")
    assert (second["pid"], second["memory"]) == (first["pid"], first["next"])
    client.suspend(ref)
    client.resume(ref)
    assert ask(talk, "three")["memory"] == second["next"]


def test_what_was_only_read_is_not_stored(keeper: tuple[str, Any], ask: Ask, client: NodeClient) -> None:
    """Also by a suspend that is not the first: caches that have grown are dropped then, too."""
    ref, talk = keeper
    ask(talk, "one")
    client.suspend(ref)
    client.resume(ref)
    reading = f"find /usr -type f -exec cat {{}} + | head -c {20 << 20} | wc -c"
    status, said, _ = client.run(ref, ExecSpec(command=["sh", "-c", reading]))
    assert (status, int(said)) == (0, 20 << 20)
    assert client.suspend(ref).memory_bytes < 4 << 20


def test_the_disk_of_a_suspended_one_is_kept_as_it_is(
    keeper: tuple[str, Any], ask: Ask, client: NodeClient, home: Any
) -> None:
    """It is what the next machine gets, unless it is gone or not what it was: then the snapshot has it."""
    ref, talk = keeper
    folder = home.sandboxes / client.get(ref).id
    write = "head -c 4000000 /dev/urandom > /blob; echo a > /small; sha256sum /blob /small"
    made = client.run(ref, ExecSpec(command=["sh", "-c", write]))
    assert made[0] == 0
    for what in ("kept", "written to", "gone", "kept, and nothing changed"):
        stored = client.suspend(ref).stored_bytes
        kept = (folder / "disk").stat()
        assert not list(folder.glob("machine-*"))
        if what == "written to":
            with (folder / "disk").open("r+b") as file:
                file.write(bytes(1 << 20))  # its superblock, among others
        elif what == "gone":
            (folder / "disk").unlink()
        client.resume(ref)
        (overlay,) = folder.glob("machine-*/overlay")
        assert (overlay.stat().st_ino == kept.st_ino) == what.startswith("kept")
        assert not (folder / "disk").exists()
        assert client.run(ref, ExecSpec(command=["sha256sum", "/blob", "/small"])) == made
        ask(talk, what)
    assert stored < 1 << 20
    # a live one is compared with the same index
    assert client.run(ref, ExecSpec(command=["sh", "-c", "echo b > /small"]))[0] == 0
    assert client.checkpoint(ref).stored_bytes < 1 << 20
    assert client.run(ref, ExecSpec(command=["sh", "-c", "echo c > /small"]))[0] == 0
    client.resume(ref, snapshot=client.snapshots(ref)[-1].digest)
    assert client.run(ref, ExecSpec(command=["cat", "/small"]))[:2] == (0, b"b\n")
    assert client.run(ref, ExecSpec(command=["sha256sum", "/blob"]))[1] == made[1].splitlines(keepends=True)[0]


VCPUS = """
import socket, sys
body = b'{"state": "%s"}' % sys.argv[2].encode()
with socket.socket(socket.AF_UNIX) as api:
    api.connect(sys.argv[1])
    api.sendall(b"PATCH /vm HTTP/1.1\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body)
    assert b" 204 " in api.recv(4096)
"""


@pytest.mark.usefixtures("hasty_node")
def test_a_guest_that_is_silent_hangs_nothing(
    keeper: tuple[str, Any], ask: Ask, client: NodeClient, below: Callable[[list[str]], str]
) -> None:
    ref, talk = keeper
    first = ask(talk, "one")

    def vcpus(state: str) -> None:  # behind the keeper's back
        pid = client.get(ref).machine["firecracker_pid"]
        below([sys.executable, "-c", VCPUS, f"/proc/{pid}/root/api.sock", state])

    vcpus("Paused")
    with pytest.raises(MachineFailed, match="did not answer"):
        client.suspend(ref)
    assert client.get(ref).state is SandboxState.RUNNING
    vcpus("Resumed")  # now it freezes its workload, as it was told, and wakes it, as it was told then
    second = ask(talk, "two")
    assert (second["pid"], second["memory"]) == (first["pid"], first["next"])
    client.suspend(ref)
    client.resume(ref)
    assert ask(talk, "three")["memory"] == second["next"]
    vcpus("Paused")
    began = time.monotonic()
    client.remove(ref, force=True)
    assert time.monotonic() - began < 20
