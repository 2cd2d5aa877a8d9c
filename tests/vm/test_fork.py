"""Live checkpoints and forks on the real Firecracker: one goes on undisturbed, the others from the same moment."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from perdure.client.node import NodeClient, ensure_running
from perdure.errors import Conflict, IllegalTransition, NoSpace, NotFound
from perdure.host.paths import Home
from perdure.model import ExecSpec, Fork, SandboxInfo, SandboxState

from .conftest import PYTHON

pytestmark = pytest.mark.vm
Fcrun = Callable[..., "subprocess.CompletedProcess[str]"]
Start = Callable[..., SandboxInfo]
Converse = Callable[..., Any]
Ask = Callable[[Any, str], dict[str, Any]]


def test_a_checkpoint_disturbs_nothing(keeper: tuple[str, Any], ask: Ask, client: NodeClient) -> None:
    ref, talk = keeper
    first = ask(talk, "one")
    snapshot = client.checkpoint(ref)
    assert client.get(ref).state is SandboxState.RUNNING
    assert 0 < snapshot.pause_s < snapshot.total_s
    second = ask(talk, "two")
    assert (second["pid"], second["memory"]) == (first["pid"], first["next"])
    again = client.checkpoint(ref)  # a difference to the first
    assert again.parent == snapshot.digest
    third = ask(talk, "three")
    assert third["memory"] == second["next"]
    suspended = client.suspend(ref)
    assert suspended.parent == again.digest
    client.resume(ref)
    fourth = ask(talk, "four")
    assert (fourth["memory"], fourth["notes"]) == (third["next"], "one\ntwo\nthree\nfour\n")
    assert len([state for state in talk.states if state == "suspended"]) == 1
    # back to the first checkpoint: memory and disk of one moment
    client.resume(ref, snapshot=snapshot.digest)
    assert client.run(ref, ExecSpec(command=["cat", "/notes"]))[1] == b"one\n"


def test_captures_at_once_follow_one_another(keeper: tuple[str, Any], ask: Ask, client: NodeClient) -> None:
    ref, talk = keeper
    ask(talk, "one")
    with ThreadPoolExecutor(2) as both:
        made = [future.result() for future in [both.submit(client.checkpoint, ref) for _ in range(2)]]
        before = {snapshot.parent for snapshot in made} & {snapshot.digest for snapshot in made}
        assert len({snapshot.digest for snapshot in made}) == 2 and len(before) == 1
        last = ask(talk, "two")
        suspends = [both.submit(client.suspend, ref) for _ in range(2)]
        refused = [future.exception() for future in suspends if future.exception() is not None]
    assert len(refused) == 1 and isinstance(refused[0], IllegalTransition)
    client.resume(ref)
    assert ask(talk, "three")["memory"] == last["next"]


def test_a_machine_that_dies_goes_on_from_its_checkpoint(
    keeper: tuple[str, Any], ask: Ask, client: NodeClient, kill_below: Callable[[int], None], converse: Converse
) -> None:
    ref, talk = keeper
    first = ask(talk, "one")
    client.checkpoint(ref)
    ask(talk, "lost")
    kill_below(client.get(ref).machine["firecracker_pid"])
    client.wait(ref)
    client.resume(ref)
    other = converse(client.attach(ref, logs=False))
    second = ask(other, "two")
    assert (second["pid"], second["memory"], second["notes"]) == (first["pid"], first["next"], "one\ntwo\n")


@pytest.mark.timeout(600)
def test_ten_forks_diverge_and_stay_apart(
    keeper: tuple[str, Any], ask: Ask, client: NodeClient, converse: Converse, fcrun: Fcrun
) -> None:
    ref, talk = keeper
    first = ask(talk, "one")
    done = fcrun("fork", "-n", "10", "--name", "twin", ref, timeout_s=300)
    assert done.returncode == 0, done.stderr
    ids = done.stdout.split()
    assert len(set(ids)) == 10
    infos = [client.get(id) for id in ids]
    assert [info.name for info in infos] == [f"twin-{number}" for number in range(1, 11)]
    assert {info.state for info in infos} == {SandboxState.RUNNING}
    assert sum(info.stored_bytes for info in infos) == 0  # nothing of their own yet
    origin = ask(talk, "origin")  # it goes on by itself
    assert origin["memory"] == first["next"]
    said = [ask(converse(client.attach(id, logs=False)), f"fork {number}") for number, id in enumerate(ids)]
    assert {answer["memory"] for answer in said} == {first["next"]}
    assert {answer["pid"] for answer in said} == {first["pid"]}
    assert [answer["notes"] for answer in said] == [f"one\nfork {number}\n" for number in range(10)]
    assert len({answer["random"] for answer in (*said, origin)}) == 11
    assert origin["notes"] == "one\norigin\n"
    names = {client.run(id, ExecSpec(command=["cat", "/proc/sys/kernel/hostname"]))[1].decode().strip() for id in ids}
    assert names == set(ids)
    # they live by themselves: one is suspended and goes on, the origin is removed
    client.suspend(ids[0])
    client.remove(ref, force=True)
    client.resume(ids[0])
    assert client.run(ids[0], ExecSpec(command=["cat", "/notes"]))[1] == b"one\nfork 0\n"
    client.remove(ids[1], force=True)
    assert client.run(ids[2], ExecSpec(command=["cat", "/notes"]))[1] == b"one\nfork 2\n"


def test_forks_of_what_is_suspended_and_of_a_snapshot(
    keeper: tuple[str, Any], ask: Ask, client: NodeClient, converse: Converse
) -> None:
    ref, talk = keeper
    first = ask(talk, "one")
    digest = client.suspend(ref).digest
    (fork,) = client.fork(ref, [Fork(name="other")])
    assert client.get(ref).state is SandboxState.SUSPENDED
    (third,) = client.fork(digest.removeprefix("sha256:")[:20])
    for info in (fork, third):
        assert ask(converse(client.attach(info.id, logs=False)), "x")["memory"] == first["next"]
    (grandchild,) = client.fork(fork.id)
    assert ask(converse(client.attach(grandchild.id, logs=False)), "y")["count"] == 3


def test_forks_that_cannot_be(start: Start, client: NodeClient, fcrun: Fcrun) -> None:
    ref = start("sleep", "1000", name="one").id
    with pytest.raises(Conflict, match="the name one is taken"):
        client.fork(ref, [Fork(name="two"), Fork(name="one")])
    assert [info.id for info in client.list()] == [ref]
    with pytest.raises(NotFound, match="no such sandbox or snapshot"):
        client.fork("0123")
    client.stop(ref, timeout_s=0)
    with pytest.raises(Conflict, match="no snapshot to fork from"):
        client.fork(ref)
    with pytest.raises(IllegalTransition, match="cannot checkpoint"):
        client.checkpoint(ref)
    assert fcrun("fork", "-n", "0", ref).returncode == 125


TERMINAL = r"""
import os, sys
print("up", os.isatty(0), flush=True)
for line in sys.stdin:
    size = os.get_terminal_size()
    print("got", line.strip(), size.lines, size.columns, flush=True)
print("bye", flush=True)
"""


def test_a_terminal_and_who_sits_at_it_are_not_disturbed_by_a_fork(
    start: Start, client: NodeClient, converse: Converse
) -> None:
    ref = start(*PYTHON, TERMINAL, tty=True, stdin=True).id
    session = client.attach(ref, logs=True)
    session.resize(30, 100)
    talk = converse(session)
    assert talk.hear_until("up") == "up True"
    talk.say("a")
    assert talk.hear_until("got") == "got a 30 100"
    (fork,) = client.fork(ref)
    assert "suspended" not in talk.states
    at_fork = client.attach(fork.id)  # from now on: what the origin was told before is not heard here
    at_fork.resize(40, 120)
    other = converse(at_fork)
    other.say("b")
    assert other.hear_until("got") == "got b 40 120"
    talk.say("c")
    assert talk.hear_until("got") == "got c 30 100"
    at_fork.send_stdin(b"\x04")  # the end of its input, as a terminal has it
    assert other.hear_until("bye")
    ended = client.wait(fork.id)
    assert (ended.state, ended.exit_status) == (SandboxState.EXITED, 0)
    talk.say("d")
    assert talk.hear_until("got") == "got d 30 100"


SIDE = r"""
import os, sys
count = 0
print("side", flush=True)
for line in sys.stdin:
    count += 1
    print(os.getpid(), count, flush=True)
open("/ended", "w").close()
"""


def test_an_exec_goes_on_over_a_checkpoint_and_ends_in_a_fork(
    start: Start,
    client: NodeClient,
    converse: Converse,
    kill_below: Callable[[int], None],
    eventually: Callable[[Callable[[], object]], None],
) -> None:
    ref = start("sleep", "100000").id
    side = converse(client.exec(ref, ExecSpec(command=[*PYTHON, SIDE], stdin=True)))
    assert side.hear() == "side"
    pid, first = side.ask("x").split()
    client.checkpoint(ref)
    assert side.ask("x").split() == [pid, str(int(first) + 1)]
    (fork,) = client.fork(ref)
    # nobody sits at it there: its input ends
    eventually(lambda: client.run(fork.id, ExecSpec(command=["test", "-f", "/ended"]))[0] == 0)
    assert side.ask("x").split() == [pid, str(int(first) + 2)]
    assert client.run(ref, ExecSpec(command=["test", "-f", "/ended"]))[0] == 1
    # the same after a death: who sat at it is told, and it does not wait for ever
    kill_below(client.get(ref).machine["firecracker_pid"])
    client.wait(ref)
    with pytest.raises(Exception, match=r"died|ended|exited"):
        side.hear()
    client.resume(ref)
    eventually(lambda: client.run(ref, ExecSpec(command=["test", "-f", "/ended"]))[0] == 0)


def test_no_line_of_an_exec_is_lost_or_said_twice_over_checkpoints(start: Start, client: NodeClient) -> None:
    ref = start("sleep", "100000").id
    count = 3000
    script = f"n=0; while [ $n -lt {count} ]; do n=$((n+1)); echo $n; done; exit 7"
    session = client.exec(ref, ExecSpec(command=["sh", "-c", script]))
    said = bytearray()
    failed: list[BaseException] = []

    def checkpoint() -> None:
        try:
            client.checkpoint(ref)
        except BaseException as error:
            failed.append(error)

    threads = []
    with session:
        for _, data in session.outputs():
            said += data
            if len(threads) < 2 and not any(thread.is_alive() for thread in threads):
                threads.append(threading.Thread(target=checkpoint))
                threads[-1].start()
    for thread in threads:
        thread.join()
    assert not failed
    assert bytes(said).split() == [b"%d" % number for number in range(1, count + 1)]
    assert session.exit_status == 7


@contextlib.contextmanager
def small(folder: Path, size: str) -> Iterator[None]:
    """A file system of this size stands in for the folder, with the same folders in it."""
    names = [path.relative_to(folder) for path in folder.rglob("*") if path.is_dir()] if folder.name == "store" else []
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        for name in names:
            (folder / name).mkdir(exist_ok=True)
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")
def test_a_full_disk_refuses_a_checkpoint_and_a_fork_and_the_sandbox_goes_on(
    keeper: tuple[str, Any], ask: Ask, client: NodeClient, converse: Converse, home: Home, firecrackers: Any
) -> None:
    ref, talk = keeper
    last = ask(talk, "one")
    running = firecrackers()
    for where, size, words in (
        (home.store, "100m", "needs 256 MiB free"),  # before anything begins
        (home.store / "ingest", "1m", "no space left"),  # while it is being packed
    ):
        for act in (client.checkpoint, client.fork):
            with small(where, size), pytest.raises(NoSpace, match=words):
                act(ref)
            assert [info.id for info in client.list()] == [ref]
            assert client.get(ref).state is SandboxState.RUNNING
            assert client.snapshots(ref) == []
            _nothing_is_left(home, ref)
            now = ask(talk, "on")
            assert (now["pid"], now["memory"]) == (last["pid"], last["next"])
            last = now
    assert firecrackers() == running
    digest = client.checkpoint(ref).digest  # of all memory: what the lost ones had taken is in it
    with small(home.sandboxes, "100m"), pytest.raises(NoSpace, match="a fork needs"):
        client.fork(digest)
    assert [info.id for info in client.list()] == [ref]
    (fork,) = client.fork(digest)
    assert ask(converse(client.attach(fork.id, logs=False)), "fork")["memory"] == last["next"]
    assert ask(talk, "last")["memory"] == last["next"]
    assert client.store.verify().findings == []


def _nothing_is_left(home: Home, ref: str) -> None:
    assert not list((home.sandboxes / ref).glob("capture-*"))
    assert not list((home.store / "ingest").iterdir())
    assert not list(home.run.glob("fork-*"))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("what", ["checkpoint", "fork"])
def test_a_node_killed_within_a_checkpoint_or_fork(
    keeper: tuple[str, Any],
    ask: Ask,
    client: NodeClient,
    converse: Converse,
    home: Home,
    firecrackers: Any,
    what: str,
) -> None:
    """The source runs on. Of forks that were told all are there; otherwise none, or all (made just then)."""
    ref, talk = keeper
    last = ask(talk, "first")
    for delay_s in (0.05, 0.3, 0.8, 1.5, 2.5):
        told: list[Any] = []

        def act(told: list[Any] = told) -> None:
            with contextlib.suppress(Exception):  # the node is killed under it
                told.append(client.checkpoint(ref) if what == "checkpoint" else client.fork(ref, [Fork(), Fork()]))

        acting = threading.Thread(target=act)
        acting.start()
        threading.Event().wait(delay_s)
        os.kill(client.system()["pid"], signal.SIGKILL)
        ensure_running(home)
        acting.join()
        assert client.get(ref).state is SandboxState.RUNNING
        forks = {info.id for info in client.list()} - {ref}
        if what == "checkpoint":
            assert forks == set()
        elif told:
            assert forks == {info.id for info in told[0]}
        else:
            assert len(forks) in (0, 2)
        assert len(firecrackers()) == 1 + len(forks)
        _nothing_is_left(home, ref)
        talk = converse(client.attach(ref))
        now = ask(talk, f"after {delay_s}")
        assert (now["pid"], now["memory"]) == (last["pid"], last["next"])
        assert now["notes"] == f"{last['notes']}after {delay_s}\n"
        # the next capture is whole, whatever the killed one had taken
        client.suspend(ref)
        client.resume(ref)
        last = ask(talk, "on")
        assert last["memory"] == now["next"]
        assert client.store.verify().findings == []
        named = {kept.digest for info in client.list() for kept in client.snapshots(info.id)}
        assert {one.digest for one in client.store.list()} == named
        for fork in forks:
            client.remove(fork, force=True)
