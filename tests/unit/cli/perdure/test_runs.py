"""A person's day with runs at the command line: the real command, server API, engine and log; only no VM."""

from __future__ import annotations

import asyncio
import json
import signal
from datetime import UTC, datetime
from typing import Any

import pytest

from perdure.context.log import NewEntry
from perdure.model import Budget, JointBudget, RunState
from perdure.runs.budgets import Budgets
from perdure.runs.joint import JointBudgets
from perdure.testing.clock import FakeClock
from perdure.testing.desks import Desk
from perdure.testing.machines import CHAT, Ask

pytestmark = pytest.mark.timeout(120)


def publishes() -> Any:
    begun = yield Ask("begin", {})
    answer = yield Ask(CHAT, {"messages": [{"role": "user", "content": "hello"}]})
    yield Ask("emit", {"name": "draft", "value": answer.value["choices"][0]["message"]["content"]})
    verdict = yield Ask("wait", {"kind": "approval", "prompt": "Publish?", "show": "the draft"})
    yield Ask("complete", {"result": [begun.value["input"], verdict.value["approved"], verdict.value["comment"]]})


def stays() -> Any:
    yield Ask("wait", {"kind": "signal", "name": "go"})
    yield Ask("wait", {"kind": "signal", "name": "never"})


def breaks() -> Any:
    error = {"type": "OwlError", "message": "no such owl", "traceback": "the very line\n"}
    yield Ask("fail", {"error": {"code": "agent-failed", "hint": "ask again", **error}})


def is_given_nonsense() -> Any:
    yield Ask("fail", {"error": {"code": "invalid-value", "message": "it takes no owls", "traceback": "of perdure's"}})


def ends_with(status: int) -> Any:
    def program() -> Any:
        yield from ()
        return status

    return program


async def test_from_its_start_to_its_result(desk: Desk) -> None:
    desk.house.machines.program = publishes
    running = await desk.start("run", "x.py:f", "--input", '{"topic": "owls"}', "--name", "first")
    assert running.stderr is not None
    run_id = (await asyncio.wait_for(running.stderr.readline(), 60)).decode().split()[1]
    await desk.house.reaches(run_id, RunState.SUSPENDED)

    assert (await desk("tag", "first", "team=owls", "gone=x"))[0] == "gone=x\nteam=owls\n"
    assert (await desk("tag", "first", "gone", "--metadata", '{"ticket": 7}'))[0] == "team=owls\n"
    before = await desk("log", "first")
    assert (await desk("tag", "first"))[0] == "team=owls\n"
    assert await desk("log", "first") == before  # it was only asked for
    assert (await desk("runs", "-q", "--tag", "team=owls"))[0].split() == [run_id]
    assert (await desk("runs", "-q", "--tag", "team=bats"))[0] == ""
    listed, _ = await desk("runs")
    assert listed.splitlines()[1].split()[:3] == [run_id, "first", "suspended"]
    status = (await desk("status", "first"))[0]
    assert (
        "durability  snapshot" in status and "tags        team=owls" in status and 'metadata    {"ticket": 7}' in status
    )
    assert "waits for   approval Publish? (wait " in status and "shows: the draft" in status
    shown, _ = await desk("show", "first")
    assert "draft: " in shown and "Publish?" in shown and "1 asked, 0 answered from the log" in shown
    assert "not the name of a signal" in (await desk("signal", "first", "g" * 300, status=2))[1]
    following = await desk.start("log", "first", "--follow", "--json")
    approved, _ = await desk("approve", "first", "--comment", "go on", "--by", "ann")
    assert approved == "approved: Publish?\n"

    said, told = [text.decode() for text in await asyncio.wait_for(running.communicate(), 60)]
    assert running.returncode == 0
    assert json.loads(said) == [{"topic": "owls"}, True, "go on"]
    assert "approved: go on" in told
    entries = [json.loads(line) for line in (await asyncio.wait_for(following.communicate(), 60))[0].splitlines()]
    assert following.returncode == 0
    assert [entry["seq"] for entry in entries] == list(range(1, len(entries) + 1))
    assert entries[-1]["kind"] == "run.completed"
    short, _ = await desk("log", run_id, "--after", "2")
    assert len(short.splitlines()) == len(entries) - 2
    _, refused = await desk("approve", "first", status=1)
    assert "answered already: approved by ann" in refused
    _, refused = await desk("cancel", "first", status=1)
    assert "it is completed" in refused


async def test_queues_at_the_command_line(desk: Desk) -> None:
    desk.house.machines.program = stays
    assert (await desk("queue", "create", "nightly", "--concurrency", "1", "--rate", "10/m"))[0] == "nightly\n"
    assert "`perdure queue ls` lists them" in (await desk("queue", "create", "nightly", status=1))[1]
    await desk("queue", "set", "nightly", "--key-concurrency", "1", "--rate", "none")
    await desk("queue", "pause", "nightly")
    first = (await desk("run", "x.py:f", "-d", "--queue", "nightly", "--queue-key", "ann"))[0].strip()
    second = (await desk("run", "x.py:f", "-d", "--queue", "nightly", "--priority", "5"))[0].strip()
    assert json.loads((await desk("queue", "inspect", "nightly"))[0])["next"] == [second, first]
    assert "2 runs wait in the queue nightly" in (await desk("queue", "rm", "nightly", status=1))[1]
    await desk("queue", "resume", "nightly")
    await desk.house.reaches(second, RunState.WAITING, RunState.SUSPENDED)
    listed = (await desk("queue", "ls"))[0].splitlines()
    assert listed[1].split() == ["nightly", "open", "1", "1", "1", "1", "-"]
    await desk("cancel", first)
    await desk("cancel", second, "--force")
    assert (await desk("queue", "rm", "nightly"))[0] == "nightly\n"
    for words, said in (
        (["create", "q", "--concurrency", "many"], "--concurrency 'many' is not a number"),
        (["create", "q", "--rate", "5"], "--rate '5' names no time"),
        (["set", "q"], "nothing to change"),
    ):
        assert said in (await desk("queue", *words, status=2))[1]
    assert "no such queue: q" in (await desk("run", "x.py:f", "--queue", "q", status=1))[1]


async def test_schedules_at_the_command_line(desk: Desk) -> None:
    desk.house.machines.program = stays
    by_cron = ("--cron", "0 9 * * *", "--zone", "Europe/Berlin")
    said, _ = await desk("schedule", "create", "daily", "x.py:f", *by_cron, "-i", "1")
    assert said.startswith("daily  next: ")
    spread = ("--jitter", "1m", "--catch-up", "all:3")
    await desk("schedule", "create", "often", "x.py:f", "--every", "15m", *spread, "--paused")
    listed = (await desk("schedule", "ls"))[0].splitlines()
    assert "0 9 * * * Europe/Berlin" in listed[1] and "every 15m" in listed[2] and "paused" in listed[2]
    run_id = (await desk("schedule", "run", "often"))[0].strip()
    assert (await desk("runs", "-q", "--tag", "schedule=often"))[0].strip() == run_id
    assert run_id in (await desk("schedule", "ls"))[0].splitlines()[2]
    await desk("schedule", "resume", "often")
    shown = json.loads((await desk("schedule", "inspect", "often"))[0])
    assert (shown["catch_up"], shown["catch_up_max"], len(shown["next"]), shown["last_run"]) == ("all", 3, 5, run_id)
    await desk("schedule", "pause", "often")
    await desk("schedule", "create", "other", "x.py:f", "--every", "1h")
    assert (await desk("schedule", "rm", "daily", "other"))[0] == "daily\nother\n"
    await desk("cancel", run_id, "--force")
    for words, said in (
        (["--cron", "0 25 * * *"], "hour is '25'"),
        (["--every", "soon"], "--every"),
        (["--every", "1h", "--catch-up", "last:3"], "--catch-up 'last:3' is unknown"),
        (["--every", "0"], "--every is 0"),
        (["--every", "1h", "--zone", "Europe/Berlin"], "--zone is of --cron"),
        ([], "by --cron or by --every"),
    ):
        assert said in (await desk("schedule", "create", "wrong", "x.py:f", *words, status=2))[1]
    assert len((await desk("schedule", "ls", "--json"))[0].splitlines()) == 1


async def test_detached_and_as_json(desk: Desk) -> None:
    desk.house.machines.program = publishes
    run_id, told = await desk("run", "x.py:f", "--detach", "--key", "once")
    run_id = run_id.strip()
    assert told == ""
    again, _ = await desk("run", "x.py:f", "--detach", "--key", "once", "--json")
    assert json.loads(again)["id"] == run_id
    await desk.house.reaches(run_id, RunState.SUSPENDED)
    waiting = await desk.start("run", "x.py:f", "--key", "once", "--json")
    await desk("approve", run_id, "--deny")
    said, told_bytes = await asyncio.wait_for(waiting.communicate(), 60)
    assert waiting.returncode == 0 and told_bytes == b""
    assert json.loads(said)["result"] == [None, False, ""]


async def test_a_failed_run_says_why_with_status_1(desk: Desk) -> None:
    desk.house.machines.program = breaks
    said, told = await desk("run", "x.py:f", status=1)
    assert said == "" and "failed: OwlError: no such owl\n  ask again" in told and "the very line\nperdure: " in told
    run_id = (await desk("runs", "-q"))[0].split()[0]
    status = (await desk("status", run_id))[0]
    assert all(line in status for line in ("error       OwlError: no such owl", " ask again", " the very line"))
    said, _ = await desk("run", "x.py:f", "--json", status=1)
    assert json.loads(said)["error"]["message"] == "no such owl"
    desk.house.machines.program = is_given_nonsense
    _, told = await desk("run", "x.py:f", status=1)  # what was typed was right
    assert "it takes no owls" in told and "of perdure's" not in told


@pytest.mark.parametrize("exit_status", [0, 3])
async def test_a_programs_output_is_printed_however_it_ended(desk: Desk, exit_status: int) -> None:
    desk.house.machines.program = ends_with(exit_status)
    said, told = await desk("run", "--image", "image", "--", "make", "-k", status=exit_status)
    assert said == "output\n"
    assert ("ended with exit status 3" in told) == (exit_status == 3)


async def line_with(stream: asyncio.StreamReader | None, words: bytes) -> bytes:
    """The next line that has them."""
    assert stream is not None
    async with asyncio.timeout(60):
        while words not in (line := await stream.readline()):
            assert line, words
    return line


@pytest.mark.parametrize("quiet", [False, True])
async def test_what_a_program_prints_is_shown_while_it_runs(desk: Desk, quiet: bool) -> None:
    def program() -> Any:
        yield Ask("wait", {"kind": "signal", "name": "go"})
        return 3

    desk.house.machines.program = program
    words = ["--quiet"] if quiet else []
    running = await desk.start("run", "--image", "image", *words, "--", "make", "-k")
    assert await line_with(running.stdout, b"") == b"output\n"
    (info,) = await desk.house.engine.runs()
    await desk.house.reaches(info.id, RunState.SUSPENDED)
    desk.house.machines.prints(desk.house.sandbox(info.id), b"live\n")
    assert await line_with(running.stdout, b"") == b"live\n"
    await desk("signal", info.id, "go")
    said, told = await asyncio.wait_for(running.communicate(), 60)
    assert (said, running.returncode) == (b"", 3)
    assert (b"waits for the signal" in told) is not quiet and b"ended with exit status 3" in told


async def test_what_an_agent_prints_is_shown_beside_its_story(desk: Desk) -> None:
    desk.house.machines.program = publishes
    running = await desk.start("run", "x.py:f")
    await line_with(running.stderr, b"asks for approval")
    (info,) = await desk.house.engine.runs()
    await desk.house.reaches(info.id, RunState.SUSPENDED)
    desk.house.machines.prints(desk.house.sandbox(info.id), b"half a line")
    assert running.stderr is not None
    await asyncio.wait_for(running.stderr.readuntil(b"half a line"), 60)
    await desk("approve", info.id)
    said, told = await asyncio.wait_for(running.communicate(), 60)
    assert json.loads(said) == [None, True, ""]
    assert told.startswith(b"\n") and b"approved" in told  # the story goes on on a line of its own


async def test_ctrl_c_leaves_the_run_going_on(desk: Desk) -> None:
    desk.house.machines.program = stays
    running = await desk.start("run", "x.py:f")
    assert running.stderr is not None
    run_id = (await asyncio.wait_for(running.stderr.readline(), 60)).decode().split()[1]
    await desk.house.reaches(run_id, RunState.SUSPENDED)
    running.send_signal(signal.SIGINT)
    _, told = await asyncio.wait_for(running.communicate(), 60)
    assert running.returncode == 130
    assert f"run {run_id} goes on" in told.decode() and "Traceback" not in told.decode()
    _, refused = await desk("approve", run_id, status=1)
    assert "does not wait for an approval" in refused
    said, _ = await desk("signal", run_id, "data", "--id", "d1")
    assert said == f"signal data is kept until run {run_id} waits for it\n"
    said, _ = await desk("signal", run_id, "data", "--id", "d1")
    assert said == f"run {run_id} has had a signal with the id d1 before: this one is not kept\n"
    said, _ = await desk("signal", run_id, "go", '{"x": 1}')
    assert said == f"signal go: run {run_id} was waiting for it, and has it\n"
    run = desk.house.engine._runs[run_id]
    assert await run.until(lambda: any(wait.name == "never" for wait in run.record.waits.open), 10)
    said, _ = await desk("cancel", run_id, "--reason", "enough", "--clean-up", "1m", "--wait")
    assert said == f"run {run_id} is cancelled\n"
    said, told_text = await desk("show", run_id)
    assert "cancelled" in said and "is to end" in said and told_text == ""
    status, _ = await desk("status")
    assert "1 cancelled" in status


async def test_a_programs_machine_and_policy_and_a_checkpoint(desk: Desk) -> None:
    desk.house.machines.program = stays
    words = ["--memory", "1g", "--cpus", "1.5", "-w", "/src", "-u", "nobody", "-v", "cache:/var/cache:ro"]
    words += ["--network", "none", "--egress", "10.0.0.0/8, example.org", "--disk", "2048"]
    words += ["--idle-grace", "never", "--checkpoint", "turn", "--checkpoint", "90s"]
    run_id, _ = await desk("run", "--image", "image", *words, "--detach", "--", "make", "-k")
    run_id = run_id.strip()
    await desk.house.reaches(run_id, RunState.WAITING)
    plan = desk.house.machines.plans[-1]
    assert (plan.memory_mib, plan.disk_mib, plan.vcpus) == (1024, 2048, 2)
    fittings = plan.fittings
    assert (fittings.cpus, fittings.cwd, fittings.user, fittings.networks) == (1.5, "/src", "nobody", ["none"])
    assert fittings.egress == ["10.0.0.0/8", "example.org"]
    assert [(mount.source, mount.target, mount.read_only) for mount in fittings.mounts] == [
        ("cache", "/var/cache", True)
    ]
    taken, _ = await desk("checkpoint", run_id, "--keep")
    assert taken.startswith("sha256:") and "stored" in taken
    status, _ = await desk("status", run_id)
    assert "sleeps after never of waiting" in status
    assert "a checkpoint after each turn; a checkpoint after 90s of running" in status
    assert "1 snapshots to go on from" in status and "kept" in status
    shown, _ = await desk("show", run_id)
    assert "checkpoint" in shown and "sleeps: never yet; 1.0 kB stored" in shown
    await desk("cancel", run_id)


async def test_the_run_of_a_key_whose_log_was_dropped_still_has_its_result(desk: Desk) -> None:
    def ends() -> Any:
        yield Ask("complete", {"result": "owls"})

    desk.house.machines.program = ends
    assert (await desk("run", "x.py:f", "--key", "once"))[0] == "owls\n"
    (info,) = await desk.house.engine.runs()
    await desk.house.released(info.id)
    await desk("log", "prune", info.id)
    said, told = await desk("run", "x.py:f", "--key", "once")
    assert said == "owls\n" and f"run {info.id}" in told and "was pruned" in told


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--timeout", "0"], "--timeout is 0\n  It is a number of seconds above 0."),
        (["--key", "k", "--key-ttl", "0"], "--key-ttl is 0"),
        (["--key", ""], "--key has 0 characters"),
        (["--key-scope", "x"], "--key-scope is of a key, and there is none\n  Give --key, too."),
        (["--queue-key", "x"], "--queue-key is of a queue, and there is none\n  Give --queue, too."),
        (["--priority", "99999999999"], "--priority is 99999999999"),
        (["--retry", "0"], "--retry: any: attempts is 0"),
        (["--retry", "2:99999d"], "--retry: any: its pause is 8.63991e+09"),
        (["--active-timeout", "0s"], "--active-timeout is 0"),
    ],
)
async def test_what_the_server_refuses_is_said_by_the_options_names(desk: Desk, words: list[str], said: str) -> None:
    _, told = await desk("run", "x.py:f", *words, status=2)
    assert said in told


async def test_what_an_agent_says_wrong_is_said_by_its_own_names(desk: Desk) -> None:
    for retry, wrong in (("{'fire': {'attempts': 3}}", "no such kind of failure: 'fire'"), ("{'any': 3}", "Expected")):
        (desk.folder / "x.py").write_text(f"@agent(retry={retry})\ndef f(ctx): ...\n")
        _, told = await desk("run", "x.py:f", status=2)
        assert f"perdure: x.py, line 1: @agent(retry=...): {wrong}" in told and "--retry" not in told
    (desk.folder / "x.py").write_text("@agent(retry={'any': {'attempts': 3, 'delay_s': -1}})\ndef f(ctx): ...\n")
    assert "@agent(retry=...): any: delay_s is -1" in (await desk("run", "x.py:f", status=2))[1]


async def test_what_is_wrong_with_queues_and_schedules_is_said_by_the_options_names(desk: Desk) -> None:
    _, told = await desk("queue", "create", "q", "--concurrency", "0", status=2)
    assert "--concurrency is 0" in told and "or 'none' for no limit" in told
    _, told = await desk("queue", "create", "q", "--rate", "0/1m", status=2)
    assert "--rate is 0" in told
    _, told = await desk("schedule", "create", "s", "x.py:f", "--every", "10s", "--catch-up", "all:0", status=2)
    assert "--catch-up is 0" in told
    _, told = await desk("schedule", "create", "s", "x.py:f", "--cron", "99 * * * *", status=2)
    assert "--cron '99 * * * *': minute is '99'" in told


async def test_a_budget_is_given_held_and_raised(desk: Desk) -> None:
    def asks_twice() -> Any:
        for number in range(2):
            answer = yield Ask(CHAT, {"messages": [{"role": "user", "content": f"hello {number}"}]})
        yield Ask("wait", {"kind": "signal", "name": "go"})
        again = yield Ask(CHAT, {"messages": [{"role": "user", "content": "again"}]})
        yield Ask("complete", {"result": [answer.status, answer.value["error"]["code"], again.status]})

    desk.house.machines.program = asks_twice
    (desk.folder / "b.py").write_text(
        "from perdure import agent\n\n@agent(image='image', budget={'calls': 9, 'tokens': 5000})\ndef f(ctx): ...\n"
    )
    run_id = (await desk("run", "b.py:f", "-d", "--budget", "calls=1", "--budget", "usd=0"))[0].strip()
    await desk.house.reaches(run_id, RunState.SUSPENDED)
    told, _ = await desk("budget", run_id)
    assert told.startswith("may spend: ") and " of 5,000 tokens, 1 of 1 calls\n" in told
    assert "spent:     about " in told and "1 turn without a known price" in told
    raised, _ = await desk("budget", run_id, "--set", "calls=1k", "--set", "usd=0", "--set", "tokens=1.5m")
    assert "1 of 1,000 calls" in raised and "of 1,500,000 tokens" in raised
    await desk("signal", run_id, "go")
    assert (await desk.house.ends(run_id)).result == [402, "over-budget", 200]
    shown, _ = await desk("show", run_id)
    assert "no answer: the run has spent what it may on models: 1 of 1 calls" in shown
    assert "outside   may spend calls=1,000, tokens=1,500,000" in shown and "budget: " in shown
    assert "is no limit" in (await desk("run", "b.py:f", "--budget", "owls=3", status=2))[1]
    assert "is no limit" in (await desk("budget", run_id, "--set", "usd=much", status=2))[1]


async def test_what_agents_may_spend_together_is_shown(desk: Desk) -> None:
    assert "[budgets.NAME.all] in settings.toml" in (await desk("budget", "--agents"))[0]
    context, clock = desk.house.context, FakeClock()
    clock._wall = datetime(2026, 12, 5, 8, tzinfo=UTC).timestamp()
    joint = [
        JointBudget(name="*", per="month", budget=Budget(usd=500, calls=1000)),
        JointBudget(name="owl*", budget=Budget(tokens=5000)),
    ]
    desk.house.engine.joint_budgets = JointBudgets(context, Budgets(joint=joint), clock)
    await context.create("one", {})
    payload = {"usage": {"input_tokens": 1200, "output_tokens": 34}, "cost_usd": 12.5}
    counted = (("*", "2026-12"), ("owl*", ""))
    await context.append("one", [NewEntry(kind="model.committed", payload=payload, joint=counted)], epoch=1)
    told, _ = await desk("budget", "--agents")
    assert told.splitlines() == [
        "*: 1 of 1,000 calls, $12.50 of $500.00 this month, until 2027-01-01 00:00 UTC",
        "owl*: 1,234 of 5,000 tokens",
    ]
    assert "whose budget?" in (await desk("budget", status=2))[1]
    assert "whose budget?" in (await desk("budget", "one", "--agents", status=2))[1]
    assert "settings.toml" in (await desk("budget", "--agents", "--set", "usd=5", status=2))[1]
