"""perdured as a process: the examples on the replay road, its command line, and kill -9 of the server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.client.node import NodeClient, ensure_running
from perdure.client.server import ServerClient
from perdure.errors import Unavailable
from perdure.host.paths import Home
from perdure.model import RunState
from perdure.testing import roads
from perdure.testing.house import Provider

DEADLINE_S = 60.0


class Server:
    """perdured of one home, with a provider that counts."""

    def __init__(self, home: Home, provider: Provider) -> None:
        self.home = home
        self.provider = provider
        self.client = ServerClient(home)
        self._process: subprocess.Popen[bytes] | None = None
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
        self.environ |= {"PERDURE_HOME": str(home.root), "PERDURE_CACHE": str(home.cache), "PERDURE_PROVIDER": "openai"}
        self.environ |= {"OPENAI_BASE_URL": provider.url, "OPENAI_API_KEY": "secret-of-the-host"}

    def up(self) -> None:
        self._process = subprocess.Popen([sys.executable, "-m", "perdure.server"], env=self.environ)
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                if self.client.status()["pid"] == self._process.pid:
                    return
            except Unavailable:
                pass
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def perdure(self, *words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "perdure.cli.perdure", *words]
        return subprocess.run(argv, env=self.environ, capture_output=True, text=True, timeout=DEADLINE_S, check=False)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    home = Home(tmp_path / "home", tmp_path / "cache").make()
    ensure_running(home)  # before the server would start it, so that it is there to be ended
    with roads.provider() as provider:
        made = Server(home, provider)
        made.up()
        yield made
        made.kill()
        NodeClient(home).shutdown()


@pytest.mark.parametrize("agent", roads.agents(), ids=lambda agent: agent.rpartition(":")[2])
def test_an_example_ends_well_without_a_microvm(server: Server, agent: str) -> None:
    life = roads.live(server.client, agent, "replay")
    assert life.info.state is RunState.COMPLETED, life.info.error
    kinds = [entry.kind for entry in life.entries]
    assert "diverged" not in kinds and "snapshot" not in kinds and life.info.recoveries == 0
    by_children = sum(server.client.get(child).turns_asked for child in life.info.children)
    assert server.provider.requests == kinds.count("model.committed") + by_children
    assert server.client.verify(life.info.id)["entries"] == life.info.seq


def test_a_killed_server_loses_nothing(server: Server, tmp_path: Path) -> None:
    """Its workers end with it, in the middle of whatever they do; the next server goes on from the log."""
    path = tmp_path / "x.py"
    path.write_text(
        f"""
import time
from perdure import agent
LEDGER = {str(tmp_path / "ledger")!r}

@agent(durability="replay")
def x(ctx):
    said = [ctx.chat(f"say {{n}}").text for n in range(3)]
    for n in range(20):
        ctx.step(f"s{{n}}", note, n)
        time.sleep(0.02)
    ctx.wait_for("go")
    return [len(said), ctx.step("count", lambda: len(open(LEDGER).readlines()))]

def note(n):
    open(LEDGER, "a").write(f"{{n}}\\n")
"""
    )
    started = server.perdure("run", "-d", f"{path}:x")
    assert started.returncode == 0, started.stderr
    run = started.stdout.strip()
    for count in (1, 5, 9):
        for entry in server.client.entries(run, follow=True):
            if entry.kind == "step.result" and entry.payload["name"] == f"s{count}":
                break
        server.kill()
        server.up()
    server.client.signal(run, "go")
    kept, lines = server.client.result(run, timeout_s=DEADLINE_S)
    assert kept == 3 and server.provider.requests == 3
    assert 20 <= lines <= 23  # a step whose result was not recorded is done again: at most one each time
    kinds = [entry.kind for entry in server.client.entries(run)]
    assert kinds.count("step.result") == 21 and kinds.count("run.recovering") == 3


def test_the_command_line_takes_both_roads(server: Server) -> None:
    path = str(roads.EXAMPLES / "research.py:research")
    started = server.perdure("run", "-d", "--durability", "replay", "--input", '{"topic": "owls"}', path)
    assert started.returncode == 0, started.stderr
    info = server.client.get(started.stdout.strip())
    assert (info.durability, info.image) == ("replay", "")
    for words, message in (
        (("--durability", "replay", "--image", "debian", path), "--image is of microVMs"),
        (("--durability", "replay", "--memory", "1g", path), "--memory is of microVMs"),
        (("--durability", "replay", "--image", "debian", "--", "true"), "--durability replay is for agents"),
        (("--durability", "replay", "--on-divergence", "fork", path), "--on-divergence fork is of microVMs"),
    ):
        refused = server.perdure("run", *words)
        assert refused.returncode == 2 and message in refused.stderr, refused.stderr
    made = server.perdure("schedule", "create", "--every", "1h", "--durability", "replay", "nightly", path)
    assert made.returncode == 0 and made.stdout.startswith("nightly  next: "), made.stderr


def test_a_worker_is_shown_as_its_run_s(server: Server) -> None:
    """What people see of a run on this road: no machine, no image, and its story."""
    run = roads.live(server.client, str(roads.EXAMPLES / "counter.py:counter"), "replay").info.id
    shown = server.perdure("show", run)
    assert shown.returncode == 0 and "approval" in shown.stdout, shown.stderr
    assert server.perdure("runs").stdout.count(run) == 1
