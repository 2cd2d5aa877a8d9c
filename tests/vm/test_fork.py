"""Live checkpoints and forks on the real Firecracker: one goes on undisturbed, the others from the same moment."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from perdure.client.node import NodeClient
from perdure.errors import Conflict, IllegalTransition, NotFound
from perdure.model import ExecSpec, Fork, SandboxInfo, SandboxState

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
