"""A sandbox of a token's own, over TCP and TLS: everything that streams, on the real Firecracker."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.client.node import STDOUT, NodeClient, ensure_running
from perdure.errors import NotFound
from perdure.host.paths import Home
from perdure.model import ExecSpec, Fork, SandboxSpec, SandboxState
from perdure.testing.outside import OutsideNode

pytestmark = pytest.mark.vm
IMAGE = "perdure-test"
DEADLINE_S = 60.0


@pytest.fixture
def outside(home: Home) -> Iterator[OutsideNode]:
    """The node of these tests, listening on TCP as well for as long."""
    settings = home.root / "settings.toml"
    client = NodeClient(home)
    client.shutdown()
    settings.write_text('[node]\nlisten = "127.0.0.1:0"\n')
    try:
        ensure_running(home)
        told = client.system()
        host, _, port = told["listen"].rpartition(":")
        yield OutsideNode(home, client, host, int(port), told["fingerprint"])
    finally:
        for info in client.list():
            client.remove(info.id, force=True)
        for token in client.border.tokens():
            client.border.remove_token(token.id)
        client.shutdown()
        settings.unlink()
        ensure_running(home)


def test_a_sandbox_of_ones_own_over_tls(outside: OutsideNode, tmp_path: Path) -> None:
    token = outside.token("own", "ann")
    bob = outside.reached_with(outside.token("own", "bob"))
    ann = outside.reached_with(token)

    done = outside.fcrun(token, "run", "-d", "--name", "box", IMAGE, "sh", "-c", "echo up; exec sleep 600")
    assert done[0] == 0, done
    assert ann.get("box").owner and ann.get("box").state is SandboxState.RUNNING

    # streams: an exec with stdin, its status; a terminal; what it wrote; files both ways
    text = "".join(f"line {number}\n" for number in range(20_000))
    piped = subprocess.run(
        [sys.executable, "-m", "perdure.cli.fcrun", "exec", "-i", "box", "sh", "-c", "cat; exit 7"],
        env={**os.environ, **outside.environment(token)}, input=text, capture_output=True, text=True,
        timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert (piped.returncode, piped.stdout, piped.stderr) == (7, text, "")
    with ann.exec("box", ExecSpec(command=["sh"], tty=True, stdin=True, rows=33, columns=77)) as shell:
        heard: queue.SimpleQueue[bytes] = queue.SimpleQueue()

        def listen() -> None:
            for stream, data in shell.outputs():
                assert stream == STDOUT
                heard.put(data)
            heard.put(b"")

        threading.Thread(target=listen, daemon=True).start()
        shell.send_stdin(b"stty size; exit 3\n")
        said = b""
        while piece := heard.get(timeout=DEADLINE_S):
            said += piece
        assert b"33 77" in said and shell.exit_status == 3
    assert outside.fcrun(token, "logs", "box")[1] == "up\n"
    (tmp_path / "big").write_bytes(os.urandom(3 << 20))
    assert outside.fcrun(token, "cp", str(tmp_path / "big"), "box:/tmp/big")[0] == 0
    assert outside.fcrun(token, "cp", "box:/tmp/big", str(tmp_path / "back"))[0] == 0
    assert (tmp_path / "back").read_bytes() == (tmp_path / "big").read_bytes()

    # what comes of it is its own too
    asleep = ann.suspend("box")
    (fork,) = ann.fork("box", [Fork(name="twin")])
    assert fork.owner == ann.get("box").owner
    (theirs,) = outside.client.fork(asleep.digest, [Fork(name="by-root")])
    assert theirs.owner == fork.owner  # what it holds is ann's, whoever made it
    assert {info.name for info in ann.list()} == {"box", "twin", "by-root"}
    assert ann.resume("box").state is SandboxState.RUNNING
    assert ann.run("box", ExecSpec(command=["cat", "/tmp/big"]))[1] == (tmp_path / "big").read_bytes()
    for ref in (fork.id, "twin", asleep.digest):
        with pytest.raises(NotFound):
            bob.fork(ref, [Fork()])
    assert bob.list() == [] and bob.store.list() == []
    with pytest.raises(NotFound):
        bob.exec("box", ExecSpec(command=["true"]))

    # a command that waits goes on over a restart of the node, which it does not start itself
    waiting = subprocess.Popen(
        [sys.executable, "-m", "perdure.cli.fcrun", "wait", "box"],
        env={**os.environ, **outside.environment(token)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with waiting:
        assert outside.fcrun(token, "kill", "box")[0] == 0
        assert waiting.communicate(timeout=DEADLINE_S)[0] == "137\n"
    assert bob.create(SandboxSpec(image=IMAGE, command=["true"], name="box")).name == "box"
