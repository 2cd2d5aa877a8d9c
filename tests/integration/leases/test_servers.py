"""Several perdured processes on one PostgreSQL: any of them answers, and what one leaves another goes on with."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.errors import Conflict
from perdure.model import RunState
from perdure.testing.fleet import Fleet, fleet, until
from perdure.testing.lostservers import lose
from perdure.testing.postgres import binaries

pytestmark = pytest.mark.skipif(binaries() is None, reason="PostgreSQL is not installed (Debian: postgresql)")

WAITS = """
from perdure import Context, agent

@agent(durability="replay")
def main(ctx: Context):
    said = ctx.chat("hello").text
    verdict = ctx.approval("Go on?")
    return [said, verdict.approved, ctx.wait_for("go")]
"""
AGENT = {"source": WAITS, "file": "agent.py", "function": "main", "durability": "replay"}


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Fleet]:
    with fleet(tmp_path, 2) as made:
        yield made


def parked(two: Fleet, number: int) -> str:
    """A run of this server that waits for its approval."""
    server = two.servers[number]
    run_id = server.client.start(**AGENT).id
    until(lambda: server.client.get(run_id).waits)
    return run_id


def test_any_server_answers_and_what_the_owner_does_is_asked_there(two: Fleet) -> None:
    run_id, other = parked(two, 0), two.servers[1].client
    assert other.get(run_id).waits[0]["kind"] == "approval"
    assert other.approve(run_id, by="ada")["kind"] == "approval"
    with pytest.raises(Conflict, match="answered already: approved by ada"):
        other.approve(run_id)
    other.signal(run_id, "go", 7)
    assert other.result(run_id, timeout_s=30) == ["answer to hello", True, 7]
    kinds = [entry.kind for entry in other.entries(run_id, follow=True)]
    assert kinds[-1] == "run.completed" and kinds.count("run.queued") == 1
    shown = {server["pid"]: server for server in other.servers()}
    assert set(shown) == {server.pid for server in two.servers}
    assert {server["lease"] for server in shown.values()} == {1, 2}
    assert all("token" not in server and server["heartbeat_age_s"] < 10 for server in shown.values())
    assert other.status()["servers"] == 2
    listed = subprocess.run(
        [sys.executable, "-m", "perdure.cli.perdure", "servers"],
        env={**os.environ, "PERDURE_HOME": str(two.servers[1].home.root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(listed.stdout.splitlines()) == 3 and str(two.servers[0].pid) in listed.stdout


def test_output_is_followed_at_any_server_and_goes_on_with_who_takes_over(two: Fleet) -> None:
    run_id = (
        two.servers[0]
        .client.start(**{**AGENT, "source": WAITS.replace("    verdict", "    print(said)\n    verdict")})
        .id
    )
    until(lambda: two.servers[0].client.get(run_id).waits)
    told = two.servers[1].client.printed(run_id, follow=True)
    first = next(told)
    assert (first.offset, first.data) == (0, b"answer to hello\n")
    two.servers[0].kill()
    other = two.servers[1].client
    other.approve(run_id)
    other.signal(run_id, "go", 7)
    assert other.result(run_id, timeout_s=30) == ["answer to hello", True, 7]
    (again,) = told  # what the first one has of it went with it: its second life says all
    assert (again.offset, again.data) == (0, b"answer to hello\n") and again.life != first.life


def test_what_was_asked_when_the_owner_had_just_died_is_done_by_who_takes_over(two: Fleet) -> None:
    run_id = parked(two, 0)
    two.servers[0].kill()
    other = two.servers[1].client
    began = time.monotonic()
    other.approve(run_id)
    other.signal(run_id, "go", 7)
    assert other.result(run_id, timeout_s=30)[1:] == [True, 7]
    assert time.monotonic() - began < 20
    assert two.provider.asked["hello"] == 1
    causes = [entry.payload["cause"] for entry in other.entries(run_id) if entry.kind == "run.recovering"]
    assert causes in ([], ["server-lost"])  # what was asleep was woken only


def test_a_server_that_was_stopped_writes_nothing_more_and_begins_anew(two: Fleet) -> None:
    run_id, first = parked(two, 0), two.servers[0]
    before = {server["pid"]: server["server"] for server in first.client.servers()}
    first.stop()
    other = two.servers[1].client
    other.approve(run_id)  # the stopped one is asked first, and does not answer
    other.signal(run_id, "go", 7)
    assert other.result(run_id, timeout_s=30)[1:] == [True, 7]
    first.go_on()
    until(lambda: before[first.pid] not in [server["server"] for server in first.client.servers()])
    until(lambda: len(first.client.servers()) == 2)
    assert first.client.get(run_id).state is RunState.COMPLETED
    other.verify(run_id)
    assert two.provider.asked["hello"] == 1


def test_a_server_that_is_ended_leaves_its_runs_to_the_others(two: Fleet) -> None:
    run_id, other = parked(two, 0), two.servers[1].client
    two.servers[0].down()
    assert len(other.servers()) == 1
    other.approve(run_id)
    other.signal(run_id, "go", 7)
    assert other.result(run_id, timeout_s=30)[1:] == [True, 7]


def test_a_second_server_of_one_home_is_refused_and_says_who_serves(two: Fleet) -> None:
    first = two.servers[0]
    second = subprocess.run(
        [sys.executable, "-m", "perdure.server"], env=first.environ, capture_output=True, text=True, check=False
    )
    assert second.returncode == 1
    assert f"a server (pid {first.pid}, {first.client.status()['url']}) serves {first.home.root}" in second.stderr
    assert len(first.client.servers()) == 2


def test_a_server_whose_database_is_away_says_so_and_can_be_found(two: Fleet) -> None:
    first = two.servers[0]
    two.database.stop()
    status = first.client.status()
    assert status["pid"] == first.pid and status["error"]["code"] == "unavailable" and "runs" not in status
    words = [sys.executable, "-m", "perdure.cli.perdure", "status"]
    said = subprocess.run(words, env=first.environ, capture_output=True, text=True, check=True).stdout
    assert f"pid {first.pid}" in said and "does not answer" in said and "runs" not in said
    two.database.start()
    until(lambda: "error" not in first.client.status())


def test_servers_and_their_database_are_lost_under_runs(tmp_path: Path) -> None:
    wrong, did = lose(tmp_path, runs=12, servers=2, seed=5)
    assert not wrong, "\n".join([did, *wrong])
