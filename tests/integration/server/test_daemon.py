"""perdured as a process: one per home, killed and started again, ended in order. No machine is asked for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perdure.client.node import NodeClient, ensure_running
from perdure.client.server import ServerClient
from perdure.errors import NoRights, NotFound, Unavailable
from perdure.host.paths import Home
from perdure.testing.postgres import PostgresServer, binaries, postgres_server
from perdure.testing.postgres_fixtures import postgres

__all__ = ["postgres"]

DEADLINE_S = 60.0


class Daemons:
    """Servers of one home; whatever was started is gone afterwards."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.client = ServerClient(home)
        self._started: list[subprocess.Popen[str]] = []

    def start(self, **environment: str) -> subprocess.Popen[str]:
        home = {"PERDURE_HOME": str(self.home.root), "PERDURE_CACHE": str(self.home.cache)}
        environ = {**os.environ, **home, **environment}
        process = subprocess.Popen(
            [sys.executable, "-m", "perdure.server"], env=environ, stderr=subprocess.PIPE, text=True
        )
        self._started.append(process)
        return process

    def up(self, **environment: str) -> subprocess.Popen[str]:
        process = self.start(**environment)
        self.until(lambda: self.client.status()["pid"] == process.pid)
        return process

    def until(self, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                if true():
                    return
            except Unavailable:
                pass
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def close(self) -> None:
        for process in self._started:
            process.kill()
            process.wait()
            if process.stderr:
                process.stderr.close()
        NodeClient(self.home).shutdown()


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[Daemons]:
    made = Daemons(Home(tmp_path / "home", tmp_path / "cache").make())
    ensure_running(made.home)  # before a server would start it, so that it is there to be ended
    yield made
    made.close()


def test_a_second_server_is_refused_and_says_who_serves(daemons: Daemons) -> None:
    first = daemons.up()
    second = daemons.start()
    _, told = second.communicate(timeout=DEADLINE_S)
    assert second.returncode == 1
    known = json.loads((daemons.home.run / "server.json").read_text())
    assert f"a server (pid {first.pid}, {known['url']}) serves {daemons.home.root} already" in told
    assert "perdure down" in told
    assert daemons.client.status()["pid"] == first.pid


def test_a_second_server_makes_no_certificate(daemons: Daemons) -> None:
    daemons.up()
    second = daemons.start(PERDURE_LISTEN="0.0.0.0:0")
    assert second.wait(DEADLINE_S) != 0
    assert not (daemons.home.root / "server.tls").exists()


def test_a_killed_server_is_followed_by_another(daemons: Daemons) -> None:
    first = daemons.up()
    first.kill()
    first.wait()
    second = daemons.up()
    assert daemons.client.status()["pid"] == second.pid
    second.send_signal(signal.SIGTERM)
    assert second.wait(DEADLINE_S) == 0
    assert not (daemons.home.run / "server.json").exists()
    assert not daemons.home.socket("perdured").exists()
    with pytest.raises(Unavailable):
        daemons.client.status()


def test_the_port_needs_the_token(daemons: Daemons) -> None:
    daemons.up()
    daemons.until(lambda: (daemons.home.run / "server.json").exists())
    path = daemons.home.run / "server.json"
    assert path.stat().st_mode & 0o077 == 0
    known = json.loads(path.read_text())
    assert ServerClient(daemons.home, url=known["url"], token=known["token"]).status()["pid"] == known["pid"]
    with pytest.raises(NoRights):
        ServerClient(daemons.home, url=known["url"]).status()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("[providers.mine]\nurl = 1\n", "unknown setting 'url'"),
        ("[runs]\nidle = 1\n", "[runs]: unknown setting 'idle'"),
        ("[runs]\nidle_grace_s = 'long'\n", "idle_grace_s"),
        ("[runs]\ncheckpoint_turns = -1\n", "checkpoint_turns is -1"),
        ("runs = 1\n", "runs is not a table"),
        ("[retention]\nkeep_days = -1\n", "[retention]: keep_days is -1"),
        ("[retention]\nkeep_s = 1\n", "[retention]: unknown setting 'keep_s'"),
    ],
)
def test_wrong_settings_are_told_and_nothing_starts(daemons: Daemons, settings: str, said: str) -> None:
    (daemons.home.root / "settings.toml").write_text(settings)
    process = daemons.start()
    _, told = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 2
    assert "settings.toml" in told
    assert said in told


def test_logs_of_runs_that_ended_long_ago_are_dropped_where_a_person_says_so(daemons: Daemons) -> None:
    first = daemons.up()
    source = "from perdure import Context, agent\n@agent(durability='replay')\ndef f(ctx: Context): return ctx.now()\n"
    info = daemons.client.start(source=source, file="x.py", function="f")
    result = daemons.client.result(info.id, timeout_s=DEADLINE_S)
    daemons.until(lambda: daemons.client.prune_older(0, dry_run=True)["runs"] == [info.id])  # its worker is removed
    assert daemons.client.status()["keep_days"] is None
    (daemons.home.root / "settings.toml").write_text("[retention]\nkeep_days = 1e-6\n")
    first.send_signal(signal.SIGTERM)
    assert first.wait(DEADLINE_S) == 0
    daemons.up()

    def is_dropped() -> bool:
        try:
            return not list(daemons.client.entries(info.id))
        except NotFound as error:
            return "was pruned" in str(error)

    daemons.until(is_dropped)
    assert daemons.client.status()["keep_days"] == 1e-6
    assert daemons.client.get(info.id).result == result


@pytest.mark.parametrize("where", ["environment", "settings"])
def test_a_server_keeps_its_runs_in_postgresql(daemons: Daemons, postgres: PostgresServer, where: str) -> None:
    environment = {"PERDURE_DATABASE": postgres.url} if where == "environment" else {}
    if where == "settings":
        (daemons.home.root / "settings.toml").write_text(f'[server]\ndatabase = "{postgres.url}"\n')
    first = daemons.up(**environment)
    status = daemons.client.status()
    assert status["database"].startswith("postgresql://")
    assert status["runs"] == {}
    assert not daemons.home.database.exists()
    second = daemons.start(**environment)
    _, told = second.communicate(timeout=DEADLINE_S)
    assert second.returncode == 1
    assert f"a server (pid {first.pid}" in told  # of this home; another home's may share the database
    first.kill()
    first.wait()
    daemons.up(**environment)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("mysql://owls", "names no PostgreSQL database"),
        ("postgresql://[", "this names no PostgreSQL database"),
        ("postgresql://127.0.0.1:1/owls", "postgresql://127.0.0.1:1/owls does not answer"),
    ],
)
def test_a_database_that_is_not_there_is_told_at_the_start(daemons: Daemons, url: str, told: str) -> None:
    process = daemons.start(PERDURE_DATABASE=url)
    _, output = process.communicate(timeout=DEADLINE_S)
    assert process.returncode in (1, 2)
    assert told in output


def test_a_database_that_goes_away_is_told_and_used_again(daemons: Daemons) -> None:
    if binaries() is None:
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    with postgres_server() as server:
        process = daemons.up(PERDURE_DATABASE=server.url)
        server.kill()
        with pytest.raises(Unavailable, match="postgresql:///postgres does not answer"):
            daemons.client.runs()
        with pytest.raises(Unavailable, match="postgresql:///postgres does not answer"):
            daemons.client.start(command=["true"], image="none")
        server.start()
        daemons.until(lambda: daemons.client.runs() == [])
        assert process.poll() is None
