"""Going back in time at the command line."""

from __future__ import annotations

import json

import pytest

from perdure.model import RunState
from perdure.testing.desks import Desk
from perdure.testing.machines import Ask
from perdure.testing.programs import Steps, approval, chat

pytestmark = pytest.mark.timeout(120)


def decision() -> Steps:
    yield chat("draft")
    verdict = yield approval("Publish?")
    yield Ask("emit", {"name": "verdict", "value": verdict.value["comment"]})
    yield Ask("complete", {"result": verdict.value["comment"]})


async def test_fork_tree_diff_and_rewind(desk: Desk) -> None:
    house = desk.house
    run_id = await house.start(decision, name="first")
    at = (await house.reaches(run_id, RunState.SUSPENDED)).seq
    said, _ = await desk("fork", "first", "--at", str(at), "-n", "2", "--name", "try")
    one, two = said.split()
    for fork in (one, two):
        await house.reaches(fork, RunState.SUSPENDED)
    house.machines.sandboxes[house.sandbox(one)].files = {"/notes": b"a\nb\n", "/same": b""}
    house.machines.sandboxes[house.sandbox(two)].files = {"/notes": b"a\nc\n", "/same": b""}

    said, _ = await desk("diff", "try-1", "try-2")
    assert f"log: the same up to entry {at} (of run {run_id}, branch 1)" in said
    assert "files: 0 added, 0 removed, 1 changed, 1 same" in said
    assert "~ /notes" in said and "4 B -> 4 B" in said and "/same" not in said
    said, _ = await desk("diff", "try-1", "try-2", "--files", "/notes")
    assert said.splitlines()[-3:] == [" a", "-b", "+c"]

    await desk("approve", "try-1", "--comment", "one way")
    await house.ends(one)
    said, _ = await desk("diff", "try-1", "try-2", "--log")
    assert "verdict: one way" in said and "files" not in said
    assert all(len(line) <= 100 for line in said.splitlines())
    said, _ = await desk("diff", "try-1", "try-2", "--json")
    found = json.loads(said)
    assert found["files"] is None and found["parted"]["seq"] == at
    assert found["after"]["a"][0]["kind"] == "forked" and found["after"]["a"][-1]["kind"] == "run.completed"

    said, _ = await desk("rewind", "try-1", str(at + 2))
    assert said == f"run {one} goes on from entry {at + 2}, on branch 2\n"
    await house.reaches(one, RunState.SUSPENDED)
    said, _ = await desk("tree", "first")
    lines = said.splitlines()
    assert lines[0].startswith(f"{run_id} 'first'  agent.py:main  suspended")
    assert lines[1].startswith(f"├─ at {at}: {one} 'try-1'")
    assert lines[2].startswith("│  ├─ branch 1, up to")
    assert lines[3].startswith(f"│  └─ at {at + 2}: branch 2, up to") and lines[3].endswith("rewound  (current)")
    assert lines[4].startswith(f"└─ at {at}: {two} 'try-2'") and lines[4].endswith("waits: Publish?")
    assert len(lines) == 5
    listed = [json.loads(line) for line in (await desk("tree", "--json"))[0].splitlines()]
    assert [tree["id"] for tree in listed] == [run_id]
    said, _ = await desk("log", one, "--branch", "1", "--json")
    assert json.loads(said.splitlines()[-1])["kind"] == "run.completed"
    story, _ = await desk("show", one)
    assert f"forked from run {run_id} at entry {at}" in story
    assert f"rewound to entry {at + 2}" in story


async def test_forks_and_a_rewind_with_a_key(desk: Desk) -> None:
    run_id = await desk.house.start(decision)
    at = (await desk.house.reaches(run_id, RunState.SUSPENDED)).seq
    first, _ = await desk("fork", run_id, "-n", "2", "--key", "tries")
    assert len(first.splitlines()) == 2
    assert (await desk("fork", run_id, "-n", "2", "--key", "tries"))[0] == first
    _, told = await desk("fork", run_id, "-n", "3", "--key", "tries", status=1)
    assert "the key 'tries' is that of other forks" in told
    for _ in range(2):
        assert "on branch 2" in (await desk("rewind", run_id, str(at), "--key", "back"))[0]
    _, told = await desk("rewind", run_id, str(at - 1), "--key", "back", status=1)
    assert "the key 'back' is that of a rewind" in told


async def test_forks_that_are_waited_for(desk: Desk) -> None:
    run_id = await desk.house.start(decision)
    await desk.house.reaches(run_id, RunState.SUSPENDED)
    await desk("approve", run_id, "--comment", "done")
    await desk.house.ends(run_id)
    said, _ = await desk("fork", run_id, "-n", "2", "--wait")
    assert said.splitlines()[0].split() == ["RUN", "NAME", "STATE", "RESULT"]
    assert [line.split()[-2:] for line in said.splitlines()[1:]] == [["completed", "done"]] * 2
    said, _ = await desk("fork", run_id, "--wait", "--json")
    assert json.loads(said)["result"] == "done"


async def test_what_is_refused_says_what_to_do(desk: Desk) -> None:
    run_id = await desk.house.start(decision)
    await desk.house.reaches(run_id, RunState.SUSPENDED)
    _, told = await desk("fork", run_id, "--at", "999", status=2)
    assert "has no entry 999" in told and f"perdure log {run_id}" in told
    _, told = await desk("rewind", "nobody", "3", status=1)
    assert "no such run: nobody" in told
    _, told = await desk("diff", run_id, f"{run_id}:7", status=1)
    assert "branch 7" in told
    _, told = await desk("diff", run_id, run_id, "--files", "/etc/passwd", status=1)
    assert "as in the image" in told
