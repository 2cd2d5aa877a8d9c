"""The care of snapshots on the real Firecracker: a compacted one is the same machine, and explain knows its guest."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from typing import Any

import pytest

from perdure.client.node import NodeClient, ensure_running
from perdure.errors import Conflict
from perdure.host.paths import Home
from perdure.model import ExecSpec, SandboxInfo

from .conftest import PYTHON

pytestmark = pytest.mark.vm
Fcrun = Callable[..., "subprocess.CompletedProcess[str]"]
Start = Callable[..., SandboxInfo]
Converse = Callable[..., Any]

# Changes some of its memory with each line, which it writes down, and says the checksum of all of it before and after.
TURNER = r"""
import os, sys, zlib
memory = bytearray(os.urandom(4 << 20))
notes = open("/notes", "a")
print("up", flush=True)
for number, line in enumerate(sys.stdin):
    notes.write(line); notes.flush()
    said = zlib.crc32(memory)
    for page in range(number % 3, 1024, 3):
        memory[page * 4096] ^= 1 + number % 255
    print(repr((os.getpid(), said, zlib.crc32(memory))), flush=True)
"""


@pytest.mark.timeout(600)
def test_a_compacted_snapshot_goes_on(start: Start, client: NodeClient, converse: Converse, fcrun: Fcrun) -> None:
    ref = start(*PYTHON, TURNER, stdin=True).id
    talk = converse(client.attach(ref, logs=True))
    assert talk.hear() == "up"
    pid, _, memory = ast.literal_eval(talk.ask("0"))
    for turn in range(1, 4):
        client.suspend(ref)
        client.resume(ref)
        now = ast.literal_eval(talk.ask(str(turn)))
        assert now[:2] == (pid, memory)
        memory = now[2]
    with pytest.raises(Conflict, match="may read the layers"):
        client.store.compact(ref)
    old = client.suspend(ref)
    assert client.store.verify().findings == []

    before = client.store.explain(ref)
    use = before.memory_use
    assert use is not None
    assert "python3" in {process.name for process in use.processes}
    assert use.total_kib > use.anonymous_kib > 4096
    assert sum(process.anonymous_kib for process in use.processes) <= use.anonymous_kib
    assert before.working_set.blocks > 0
    done = fcrun("snapshot", "compact", "--format", "json", ref)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    new = told["after"]["digest"]
    assert told["before"]["digest"] == old.digest != new
    after = client.store.explain(ref)
    assert after.working_set.blocks == before.working_set.blocks
    assert after.working_set.reads <= 1
    assert (len(after.memory.layers), len(after.disk.layers)) == (1, 1)
    assert client.store.verify().findings == []

    client.resume(ref)  # over a layer whose data is in the order of first touch
    now = ast.literal_eval(talk.ask("again"))
    assert now[:2] == (pid, memory)
    client.suspend(ref)  # a difference to the compacted one
    client.resume(ref)
    assert ast.literal_eval(talk.ask("once more"))[:2] == (pid, now[2])
    client.resume(ref, snapshot=old.digest)  # by its former name: who wrote it down goes on using it
    session = converse(client.attach(ref))
    assert ast.literal_eval(session.ask("back"))[:2] == (pid, memory)
    assert "Deleted" in fcrun("snapshot", "gc").stdout
    assert client.store.verify().findings == []
    tree = fcrun("snapshot", "tree").stdout
    assert new.removeprefix("sha256:")[:12] in tree
    assert "is gone" not in tree


@pytest.mark.timeout(600)
def test_no_chain_grows_without_end(
    start: Start, client: NodeClient, converse: Converse, eventually: Callable[[Callable[[], object]], None]
) -> None:
    """Twelve suspends, one soon after the other: compacted by itself, asleep or awake, and the machine never knows.
    Nor does its disk."""
    ref = start(*PYTHON, TURNER, stdin=True).id
    talk = converse(client.attach(ref, logs=True))
    assert talk.hear() == "up"
    pid, _, memory = ast.literal_eval(talk.ask("0"))
    made = client.run(ref, ExecSpec(command=["sh", "-c", "head -c 500000 /dev/urandom > /blob; sha256sum /blob"]))
    assert made[0] == 0
    digests = []
    for turn in range(1, 13):
        digests.append(client.suspend(ref).digest)
        client.resume(ref)
        now = ast.literal_eval(talk.ask(str(turn)))
        assert now[:2] == (pid, memory), turn
        memory = now[2]
    assert len(client.snapshots(ref)) == 12
    _, blob, _ = client.run(ref, ExecSpec(command=["cat", "/blob"]))
    assert hashlib.sha256(blob).hexdigest() == made[1].decode().split()[0]
    client.suspend(ref)

    def layers() -> int:
        (newest,) = [one for one in client.store.list(sandbox=ref) if one.digest == client.get(ref).snapshot.digest]  # type: ignore[union-attr]
        return max(newest.memory_layers, newest.disk_layers)

    eventually(lambda: layers() <= 8)
    assert any(event.kind == "sandbox.compacted" for event in client.events(follow=False))
    client.resume(ref)
    assert ast.literal_eval(talk.ask("again"))[:2] == (pid, memory)
    assert client.run(ref, ExecSpec(command=["sha256sum", "/blob"])) == made
    notes = "".join(f"{turn}\n" for turn in (*range(13), "again"))
    assert client.run(ref, ExecSpec(command=["cat", "/notes"]))[1].decode() == notes
    assert client.store.verify().findings == []
    client.resume(ref, snapshot=digests[5])  # older ones are still what they were, whatever became of them
    session = converse(client.attach(ref))
    assert ast.literal_eval(session.ask("back"))[0] == pid


@pytest.mark.timeout(600)
def test_a_thorough_verification_restores_for_real(
    keeper: tuple[str, Any],
    ask: Callable[[Any, str], dict[str, Any]],
    client: NodeClient,
    fcrun: Fcrun,
    home: Home,
    firecrackers: Callable[[], list[int]],
) -> None:
    ref, talk = keeper
    first = ask(talk, "one")
    client.checkpoint(ref)  # captured while it is mounted and written to
    client.run(ref, ExecSpec(command=["sh", "-c", "for n in 1 2 3; do echo $n > /file$n; done; rm /file1"]))
    running = firecrackers()
    client.checkpoint(ref)
    done = fcrun("snapshot", "verify", "--thorough", ref, timeout_s=300)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "sound" in done.stdout
    assert "1 restored" in done.stdout
    # who runs was not touched, and nothing is left of it
    assert firecrackers() == running
    assert not list(home.run.glob("verify-*"))
    second = ask(talk, "two")
    assert (second["pid"], second["memory"]) == (first["pid"], first["next"])
    client.suspend(ref)
    done = fcrun("snapshot", "verify", "--thorough", timeout_s=300)  # the whole store
    assert done.returncode == 0, done.stdout
    assert "3 restored" in done.stdout
    assert firecrackers() == []
    client.resume(ref)
    assert ask(talk, "three")["memory"] == second["next"]


def test_a_node_killed_within_a_thorough_verification(
    start: Start, client: NodeClient, home: Home, firecrackers: Callable[[], list[int]]
) -> None:
    ref = start("sleep", "1000").id
    client.suspend(ref)
    for delay_s in (0.1, 0.6, 1.5, 3.0):
        verifying = threading.Thread(target=lambda: _ignore(lambda: client.store.verify(ref, thorough=True)))
        verifying.start()
        threading.Event().wait(delay_s)
        os.kill(client.system()["pid"], signal.SIGKILL)
        ensure_running(home)
        verifying.join()
        assert firecrackers() == [], delay_s
        assert not list(home.run.glob("verify-*")), delay_s
    assert client.store.verify(ref, thorough=True).findings == []
    client.resume(ref)


def _ignore(act: Callable[[], object]) -> None:
    try:
        act()
    except Exception:
        pass  # the node was killed under it
