"""The context log at the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from perdure.context.log import NewEntry
from perdure.model import RunState
from perdure.testing.desks import Desk, opened
from perdure.testing.house import Provider
from perdure.testing.machines import Ask
from perdure.testing.programs import Steps, approval, chat

pytestmark = pytest.mark.timeout(120)


def talks() -> Steps:
    yield chat("draft " + "who? " * 300)
    yield Ask("emit", {"name": "owls", "value": "x" * 700})
    verdict = yield approval("Publish?")
    yield Ask("complete", {"result": verdict.value["comment"]})


async def ended(desk: Desk) -> str:
    run_id = await desk.house.start(talks, name="first")
    await desk.house.reaches(run_id, RunState.SUSPENDED)
    await desk("approve", "first", "--comment", "go")
    await desk.house.ends(run_id)
    await desk.house.released(run_id)
    return run_id


async def test_show_follow_and_filters(desk: Desk) -> None:
    run_id = await ended(desk)
    whole = (await desk("log", "first"))[0].splitlines()
    assert whole == (await desk("log", "show", run_id))[0].splitlines()
    assert whole == (await desk("log", "follow", run_id))[0].splitlines()
    assert whole == (await desk("log", "--follow", "first"))[0].splitlines()
    assert (await desk("log", "first", "--limit", "2"))[0].splitlines() == whole[:2]
    assert (await desk("log", "first", "--after", "2", "--limit", "1"))[0].splitlines() == whole[2:3]

    async def kinds(*words: str) -> list[str]:
        return [json.loads(line)["kind"] for line in (await desk("log", "first", "--json", *words))[0].splitlines()]

    assert await kinds("--kind", "wait.started") == ["wait.started"]
    assert await kinds("--kind", "wait.") == ["wait.started", "wait.completed"]
    assert await kinds("--kind", "wait.", "--follow") == ["wait.started", "wait.completed"]
    entries = [json.loads(line) for line in (await desk("log", "first", "--json"))[0].splitlines()]
    key = next(entry["key"] for entry in entries if entry["kind"] == "emit")
    assert await kinds("--key", key) == ["emit"]
    assert await kinds("--lane", key.split("/")[0]) == [entry["kind"] for entry in entries if "key" in entry]
    assert await kinds("--lane", "nobody's") == []
    _, told = await desk("log", "first", "--lane", "main", "--key", "main/1", status=2)
    assert "name the same thing" in told
    assert (await desk("log", "first", "--branch", "1"))[0].splitlines() == whole
    _, told = await desk("log", "first", "--branch", "9", status=1)
    assert f"run {run_id} has no branch 9" in told
    assert "--branch N is of what was written" in (await desk("log", "first", "-f", "--branch", "1", status=2))[1]


async def test_a_kind_that_no_entry_has(desk: Desk) -> None:
    run_id = await ended(desk)
    for words in (("show",), ("show", "--follow"), ("follow",), ("show", "--json")):
        _, told = await desk("log", *words, "first", "--kind", "wait.start", status=2)
        assert "no such kind of entry: 'wait.start'" in told and "Did you mean wait.started?" in told
    for kind, meant in (("models.", "model."), ("wait", "wait."), ("NONSENSE", "")):
        _, told = await desk("log", "first", "--kind", kind, status=2)
        assert ("Did you mean" in told) == bool(meant) and meant in told and "Known are run., model., " in told
    assert await desk("log", "first", "--kind", "step.result") == ("", "")  # there might be one
    assert (await desk("log", "first", "--kind", "", "--limit", "1"))[0].count("\n") == 1
    theirs = [NewEntry(kind="later.thing", payload={})]  # of another version
    await desk.house.context.append(run_id, theirs, epoch=None)
    for kind in ("later.thing", "later."):
        assert "later.thing" in (await desk("log", "first", "--kind", kind))[0]


async def test_export_verify_import(desk: Desk, tmp_path: Path, provider: Provider) -> None:
    run_id = await ended(desk)
    await desk("log", "export", "first", "-o", "first.log")
    said, _ = await desk("log", "verify", "--file", "first.log")
    assert "perdure log verify --file first.log" in (await desk("log", "verify", "first.log", status=1))[1]
    assert re.fullmatch(r"verified: \d+ entries, 1 branch, [3-9] large values\n", said)
    assert (await desk("log", "verify", "first"))[0] == said
    assert (await desk("log", "export", "first"))[0] == (tmp_path / "first.log").read_text()
    assert not (tmp_path / "first.log.new").exists()
    _, told = await desk("log", "export", "first", "-o", "nowhere/first.log", status=2)
    assert "nowhere/first.log cannot be written: No such file or directory" in told
    _, told = await desk("log", "import", "first.log", status=1)
    assert f"there is a run {run_id} already" in told

    (tmp_path / "other").mkdir()
    async with opened(tmp_path / "other", provider) as other:
        damaged = (tmp_path / "first.log").read_text().replace("Publish?", "Publish!")
        (tmp_path / "damaged.log").write_text(damaged)
        for words in (("log", "verify", "--file"), ("log", "import")):
            _, told = await other(*words, str(tmp_path / "damaged.log"), status=1)
            assert "line " in told and "is not what was appended: its hash differs" in told
        assert (await other("runs", "-q"))[0] == ""
        assert (await other("log", "import", str(tmp_path / "first.log")))[0] == run_id + "\n"
        assert (await other("log", "first", "--json"))[0] == (await desk("log", "first", "--json"))[0]
        assert "Publish?" in (await other("show", "first"))[0]
    for words in (("log", "verify", "--file", "nothing"), ("log", "import", "nothing")):
        assert "nothing cannot be read" in (await desk(*words, status=2))[1]


async def test_a_run_that_goes_on_is_neither_taken_up_nor_pruned(
    desk: Desk, tmp_path: Path, provider: Provider
) -> None:
    run_id = await desk.house.start(talks, name="first")
    await desk.house.reaches(run_id, RunState.SUSPENDED)
    await desk("log", "export", "first", "-o", "first.log")
    (tmp_path / "other").mkdir()
    async with opened(tmp_path / "other", provider) as other:
        _, told = await other("log", "import", str(tmp_path / "first.log"), status=1)
        assert "had not ended when it was exported: it was suspended" in told
        assert (await other("runs", "-q"))[0] == ""
    _, told = await desk("log", "prune", "first", status=1)
    assert "has not ended: it is suspended" in told
    assert (await desk("log", "prune", "--older-than", "0s"))[0].startswith("0 logs dropped")


async def test_prune(desk: Desk) -> None:
    run_id = await ended(desk)
    await desk("log", "export", "first", "-o", "first.log")
    turns = (await desk("runs"))[0].splitlines()[1].split()
    assert (await desk("log", "prune", "--older-than", "1d", "--dry-run"))[0] == ""
    assert (await desk("log", "prune", "--older-than", "0s", "--dry-run"))[0] == run_id + "\n"
    said, _ = await desk("log", "prune", "--older-than", "0s")
    assert said.startswith(f"{run_id}\n1 logs dropped; 0 large values removed")
    said, _ = await desk("log", "prune", "--older-than", "0s", "--json")
    found = json.loads(said)
    assert found["runs"] == [] and found["swept"]["blobs"] > 0
    _, told = await desk("log", "first", status=1)
    assert "was pruned" in told and f"`perdure status {run_id}`" in told
    for words in (("fork", "first", "--at", "3"), ("rewind", "first", "3")):
        assert f"the log of run {run_id} was pruned" in (await desk(*words, status=1))[1]
    assert (await desk("runs"))[0].splitlines()[1].split() == turns and "1+0" in turns
    assert json.loads((await desk("status", "first", "--json"))[0])["result"] == "go"
    assert "pruned already" in (await desk("log", "prune", "first", status=1))[1]
    assert "is no time" in (await desk("log", "prune", "--older-than", "soon", status=2))[1]


async def test_what_was_pruned_is_imported_again(desk: Desk) -> None:
    run_id = await ended(desk)
    await desk("log", "export", "first", "-o", "first.log")
    shown = [(await desk(*words))[0] for words in (("log", "first", "--json"), ("log", "verify", "first"))]
    await desk("log", "prune", "first")
    for _ in range(2):
        await desk("log", "prune", "--older-than", "0s")
    assert (await desk("log", "import", "first.log"))[0] == run_id + "\n"
    assert [(await desk(*words))[0] for words in (("log", "first", "--json"), ("log", "verify", "first"))] == shown
    assert (await desk("runs"))[0].splitlines()[1].split()[:3] == [run_id, "first", "completed"]
    assert (await desk("log", "prune", "--older-than", "1h"))[0].startswith("0 logs")  # taken up just now
    _, told = await desk("log", "import", "first.log", status=1)
    assert f"there is a run {run_id} already" in told
    await desk("log", "prune", "first")
    await desk("tag", "first", "a=b")
    assert "was pruned" in (await desk("log", "first", status=1))[1]
    await desk("log", "import", "first.log")
    assert "tagged" in (await desk("log", "first"))[0].splitlines()[-1]
    await desk("log", "prune", "first")
    _, told = await desk("log", "import", "first.log", status=1)
    assert "and what was pruned at entry" in told and "exported last before it was" in told
