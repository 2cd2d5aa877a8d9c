"""Forks and rewinds of runs on real microVMs: memory and files are what they were at the entry."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from perdure.cli.perdure import _daemons
from perdure.cli.perdure._image import ensure_default
from perdure.client.node import NodeClient
from perdure.client.server import ServerClient
from perdure.gateway.offline_process import OfflineProcess
from perdure.host.paths import Home
from perdure.model import RunState
from perdure.runs.states import TERMINAL

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]
DEADLINE_S = 180.0

AGENT = """
import os
from perdure import agent

@agent()
def writer(ctx):
    said = ["begun"]
    open("/notes", "w").write("begun\\n")
    before = ctx.step("once", lambda: os.getpid())
    for name in ("one", "two"):
        verdict = ctx.approval(name)
        said.append(verdict.comment)
        open("/notes", "a").write(verdict.comment + "\\n")
        open("/" + verdict.comment, "w").write(name)
    return [said, open("/notes").read(), before == os.getpid()]
"""


@pytest.fixture
def server(home: Home, client: NodeClient, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerClient]:
    """A server on the node's home, with an empty log."""
    monkeypatch.setenv("PERDURE_PROVIDER", "offline")
    for name in [name for name in os.environ if name.startswith("OPENAI_")]:
        monkeypatch.delenv(name)
    for path in home.root.glob("perdure.db*"):
        path.unlink()
    assert ensure_default()
    _daemons.start_server(home)
    yield ServerClient(home)
    _daemons._stop_server(home)
    OfflineProcess(home).stop()


def asks(server: ServerClient, run: str, name: str) -> int:
    """The position of a run that sleeps and waits for this approval."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        info = server.get(run)
        if info.state is RunState.SUSPENDED and [wait["name"] for wait in info.waits] == [name]:
            return info.seq
        assert info.state not in TERMINAL and time.monotonic() < deadline, info
        time.sleep(0.1)


def is_gone(client: NodeClient) -> bool:
    deadline = time.monotonic() + DEADLINE_S
    while any("perdure.run" in info.spec.labels for info in client.list()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def test_three_forks_at_a_decision_and_a_rewind(server: ServerClient, client: NodeClient) -> None:
    run = server.start(source=AGENT, file="agent.py", function="writer", image=ensure_default()).id
    at = asks(server, run, "one")
    forks = [fork.id for fork in server.fork(run, count=3, name="way")]
    words = ("left", "right", "straight")
    for fork, word in zip(forks, words, strict=True):
        asks(server, fork, "one")
        server.approve(fork, approved=True, comment=word)
    for fork in forks:
        asks(server, fork, "two")
        running = [e for e in server.entries(fork) if e.kind == "run.running" and e.run_id == fork]
        assert running[0].payload["from"].startswith("sha256:")  # not from the start

    found = server.diff(forks[0], forks[1], files=True)
    assert found["parted"] == {"run_id": run, "branch": 1, "seq": at}
    assert found["problem"] is None
    differing = {one["path"]: one for one in found["files"] if one["change"] != "same"}
    assert differing["/left"]["change"] == "removed" and differing["/right"]["change"] == "added"
    notes = differing["/notes"]
    assert (notes["change"], notes["a_bytes"], notes["b_bytes"]) == ("changed", 11, 12)
    assert server.file(forks[1], "/notes") == b"begun\nright\n"

    server.rewind(forks[0], at)
    asks(server, forks[0], "one")
    assert [one["path"] for one in server.diff(run, forks[0], files=True)["files"] if one["change"] != "same"] == []
    server.approve(forks[0], approved=True, comment="back")
    asks(server, forks[0], "two")
    for fork, word in zip(forks, ("back", *words[1:]), strict=True):
        server.approve(fork, approved=True, comment="end")
        said, written, is_same = server.result(fork, timeout_s=DEADLINE_S)
        assert said == ["begun", word, "end"]
        assert written == f"begun\n{word}\nend\n"
        assert is_same  # the same process all along: the step was not run again
        server.verify(fork)
    assert asks(server, run, "one") == at  # the run itself was left alone

    server.rewind(forks[1], at)  # it has ended, and its snapshots are gone: from that of the run above
    asks(server, forks[1], "one")
    server.approve(forks[1], approved=True, comment="anew")
    asks(server, forks[1], "two")
    server.approve(forks[1], approved=True, comment="end")
    said, written, is_same = server.result(forks[1], timeout_s=DEADLINE_S)
    assert (said, written) == (["begun", "anew", "end"], "begun\nanew\nend\n")
    server.cancel(run, force=True)
    assert is_gone(client)
