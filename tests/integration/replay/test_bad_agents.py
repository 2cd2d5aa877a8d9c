"""What agents get wrong, and what is done to their workers: each ends its run with what happened, and why."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from perdure.client.source import read
from perdure.errors import AgentInvalid, InvalidValue, PerdureError, VersionMismatch
from perdure.host.paths import Home
from perdure.model import RunState
from perdure.runs.record import Record, StartRequest
from perdure.runs.replay import CALLS_VERSION, check_versions
from perdure.server import workers as workers_module
from perdure.server.transcripts import PART_BYTES
from perdure.server.workerlimit import limit
from perdure.testing.cgroups import limited_cgroup
from perdure.testing.workers import WorkerHouse


@pytest.mark.parametrize(
    ("source", "code", "message"),
    [
        ("import nothing_like_it\ndef f(ctx): ...", "agent-invalid", "line 3 does not import: ModuleNotFoundError"),
        ("raise RuntimeError('no')", "agent-invalid", "does not import: RuntimeError: no"),
        ("def g(ctx): ...", "agent-invalid", "no function 'f'"),
        ("def f(ctx):\n    raise KeyError('x')", "agent-failed", "'x'"),
        ("import os\ndef f(ctx):\n    print('so far')\n    os._exit(3)", "program-failed", "exit status 3"),
        ("import sys\ndef f(ctx):\n    sys.exit(3)", "agent-failed", "3"),
        ("def f(ctx, a):\n    ...", "invalid-value", "f needs the input 'a'"),
        ("def f(ctx):\n    return {1, 2}", "invalid-value", "what f returned is not a JSON value"),
    ],
)
async def test_a_function_that_ends_badly_is_told_so(road: WorkerHouse, source: str, code: str, message: str) -> None:
    info = await road.ends(await road.start(source))
    assert info.state is RunState.FAILED and info.error is not None
    assert info.error["code"] == code and message in info.error["message"], info.error
    if code == "program-failed":
        assert info.error["details"] == {"exit_status": 3, "output": "so far\n"}


@pytest.mark.parametrize(
    ("source", "message", "printed"),
    [
        ("def f(ctx: Context, topic): ...", "f needs the input 'topic'", ""),
        ("import nothing_like_it", "x.py, line 3 does not import", "No module named 'nothing_like_it'\n"),
    ],
)
async def test_wrong_input_has_no_trace_of_what_is_not_its_authors(
    road: WorkerHouse, source: str, message: str, printed: str
) -> None:
    run_id = await road.start(source)
    info = await road.ends(run_id)
    assert info.error is not None and info.error["message"].startswith(message)
    told = (await road.engine.output(run_id, 1 << 20)).decode()
    assert (
        told.endswith(printed)
        and "direct cause" not in told
        and "AgentInvalid" not in told
        and bool(told) == bool(printed)
    )


async def test_one_that_is_killed_again_and_again_is_given_up(road: WorkerHouse) -> None:
    road.settings = replace(road.settings, failures_max=2)
    await road.down()
    await road.up()
    info = await road.ends(await road.start("import os\ndef f(ctx):\n    os.kill(os.getpid(), 9)"))
    assert info.error is not None and info.recoveries == 2
    assert info.error["message"] == "gave up after 3 failures in a row: worker-killed (signal 9)"


@pytest.fixture
def narrow() -> Iterator[Path]:
    """A cgroup with 64 MiB of memory."""
    try:
        cgroup = limited_cgroup("worker", memory_bytes=64 << 20)
    except OSError as error:
        pytest.skip(f"no cgroup with a limit of memory may be made: {error}")
    yield cgroup
    cgroup.rmdir()


async def test_one_that_takes_too_much_memory_is_told_so(road: WorkerHouse, narrow: Path) -> None:
    road.settings = replace(road.settings, failures_max=0)
    await road.down()
    await road.up()
    run_id = await road.start(
        """
        def f(ctx: Context):
            ctx.emit("begun")
            ctx.step("wait", lambda: open(PIPE).read())
            held = [bytearray(b"x" * (1 << 20)) for _ in range(1000)]
        """.replace("PIPE", repr(str(pipe := road.home.root / "pipe")))
    )
    os.mkfifo(pipe)
    await road.until(run_id, "step.intent")
    (narrow / "cgroup.procs").write_text(str(road.worker(run_id)))
    await asyncio.to_thread(pipe.write_text, "go")
    info = await road.ends(run_id)
    assert info.error is not None and "out-of-memory" in info.error["message"], info.error


async def test_what_a_worker_prints_is_bounded_and_its_end_is_kept(road: WorkerHouse) -> None:
    run_id = await road.start(
        "def f(ctx):\n    for n in range(300):\n        print('x' * 100_000)\n    print('the end')"
    )
    await road.result(run_id)
    output = await road.engine.output(run_id, 1 << 30)
    assert output.endswith(b"the end\n") and len(output) <= 2 * PART_BYTES


async def test_a_worker_has_no_key_of_a_provider(road: WorkerHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-of-the-host")
    run_id = await road.start("import os\ndef f(ctx):\n    return dict(os.environ)", env={"MINE": "1"})
    found = await road.result(run_id)
    assert found["MINE"] == "1" and "secret-of-the-host" not in str(found)
    assert set(found) - {"MINE"} <= workers_module.KEPT | {name for name in found if name.startswith("LC_")}


async def test_what_a_step_started_ends_with_its_worker(road: WorkerHouse, tmp_path: Path) -> None:
    source = """
        import subprocess
        def f(ctx: Context):
            child = subprocess.Popen(["sleep", "1000"])
            ctx.emit("child", child.pid)
            ctx.wait_for("never")
        """
    run_id = await road.start(source)
    pidfd = os.pidfd_open(int((await road.until(run_id, "emit")).payload["value"]))
    try:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        assert await asyncio.to_thread(poller.poll, 10_000)
    finally:
        os.close(pidfd)


async def test_one_that_is_cancelled_while_it_waits_for_another_to_end_is_done_with(tmp_path: Path) -> None:
    road = WorkerHouse(Home(tmp_path / "home", tmp_path / "cache"), limit=1)
    await road.up()
    try:
        stays = "def f(ctx: Context):\n    ctx.step('stay', __import__('time').sleep, 600)\n"
        holder = await road.start(stays)
        await road.until(holder, "step.intent")
        waiting = await road.start(stays)
        await road.until(waiting, "run.starting")
        run = road.engine._runs[waiting]
        await road.engine.cancel(waiting)
        assert await run.until(lambda: run.record.released, 20)
        assert not (road.home.root / "workers" / waiting).exists()
        other = await road.start("def f(ctx: Context):\n    return 1\n")
        await road.until(other, "run.starting")
        await road.engine.cancel(holder, clean_up_s=0)
        assert await road.result(other) == 1  # the place was not taken by the one that had gone
    finally:
        await road.down()


async def test_others_wait_for_a_worker_to_end(tmp_path: Path) -> None:
    road = WorkerHouse(Home(tmp_path / "home", tmp_path / "cache"), limit=1)
    await road.up()
    try:
        holds = "def f(ctx: Context):\n    ctx.step('hold', open, PIPE)\n    return 1"
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        first = await road.start(f"PIPE = {str(pipe)!r}\n{holds}")
        await road.until(first, "step.intent")
        second = await road.start("def f(ctx: Context):\n    return 2")
        await road.until(second, "run.starting")
        assert (await road.engine.ended(second, 0.2)).state is RunState.STARTING
        await road.engine.cancel(first, clean_up_s=0)
        assert await road.result(second) == 2
    finally:
        await road.down()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": "debian"}, "image is of microVMs, and durability=replay has none"),
        ({"memory_mib": 512}, "memory_mib is of microVMs"),
        ({"on_divergence": "live"}, "on_divergence=live is of microVMs"),
        ({"source": "", "file": "", "function": "", "command": ["true"]}, "durability=replay is for agents"),
    ],
)
async def test_what_belongs_to_a_machine_is_refused(road: WorkerHouse, changes: dict[str, Any], message: str) -> None:
    request = StartRequest(source="x = 1", file="x.py", function="f", durability="replay")
    with pytest.raises(InvalidValue, match=message):
        await road.engine.start(msgspec.structs.replace(request, **changes))


def test_a_run_of_another_version_names_both() -> None:
    record = Record(state=RunState.QUEUED, request=StartRequest(), made_by="0.0.1", calls_version=7)
    with pytest.raises(VersionMismatch) as raised:
        check_versions(record)
    assert "perdure 0.0.1 (calls version 7)" in raised.value.message
    assert raised.value.details["recorded"] == {"perdure": "0.0.1", "calls": 7}


def test_another_perdure_with_the_same_calls_goes_on() -> None:
    check_versions(Record(state=RunState.QUEUED, request=StartRequest(), made_by="0.0.1", calls_version=CALLS_VERSION))


async def test_a_run_that_other_calls_began_is_not_gone_on_with(
    road: WorkerHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = await road.start("def f(ctx: Context):\n    return ctx.wait_for('go')", version="2026-1")
    await road.until(run_id, "run.suspended")
    monkeypatch.setattr("perdure.runs.replay.CALLS_VERSION", 99)
    await road.engine.signal(run_id, "go", 1)
    info = await road.ends(run_id)
    assert info.error is not None and info.error["code"] == "version-mismatch" and "version 99" in info.error["message"]
    begun = (await road.entries(run_id, "run.queued"))[0].payload
    assert begun["request"]["version"] == "2026-1" and begun["source"].startswith("sha256:")


WAVERS = """
import os
def f(ctx: Context):
    first = not os.path.exists(MARK)
    open(MARK, "w").close()
    {0}
    try:
        ctx.wait_for("go")
    except BaseException as problem:
        ctx.emit("caught", str(problem))
    return 1
"""


@pytest.mark.parametrize(
    ("goes", "recorded", "asked"),
    [
        ('ctx.step("a" if first else "b", int)', ("step", "a", 4), ("step", "b")),
        ('first and ctx.step("a", int)', ("step", "a", 4), ("wait", "signal:go")),
        ('first or ctx.step("a", int)', ("wait", "signal:go", 4), ("step", "a")),
        ('ctx.wait_for("x" if first else "y", timeout=0) if False else ctx.sleep(0) if first else 0',
         ("wait", "time", 4), ("wait", "signal:go")),
        ('ctx.messages({"role": "user", "content": str(first)})', ("message", "", 4), ("message", "")),
    ],
)  # fmt: skip
async def test_a_function_that_goes_another_way_is_told_with_both_sides(
    road: WorkerHouse, tmp_path: Path, goes: str, recorded: Any, asked: Any
) -> None:
    run_id = await road.start(f"MARK = {str(tmp_path / 'mark')!r}\n" + WAVERS.format(goes))
    await road.until(run_id, "run.suspended")
    await road.engine.signal(run_id, "go", 1)
    info = await road.ends(run_id)
    assert info.error is not None and info.error["code"] == "version-mismatch", info
    had, wanted = info.error["details"]["recorded"], info.error["details"]["asked"]
    assert (had["kind"], had["name"], had["seq"]) == recorded and (wanted["kind"], wanted["name"]) == asked
    assert f"entry {recorded[2]}" in info.error["message"]
    kinds = [entry.kind for entry in await road.entries(run_id)]
    assert "diverged" in kinds and "emit" not in kinds


def test_how_many_workers_is_a_setting(tmp_path: Path) -> None:
    home = Home(tmp_path, tmp_path).make()
    assert limit(home, {}) == 16 and limit(home, {"PERDURE_WORKERS_MAX": "3"}) == 3
    (tmp_path / "settings.toml").write_text("[workers]\nmax = 5\n")
    assert limit(home, {}) == 5
    for text in ("[workers]\nmax = 0\n", "[workers]\nmost = 1\n", "workers = 3\n", "max ="):
        (tmp_path / "settings.toml").write_text(text)
        with pytest.raises(PerdureError, match=r"settings\.toml"):
            limit(home, {})


def test_an_agent_that_says_both_is_refused_before_anything_starts(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text('@agent(durability="replay", image="debian")\ndef f(ctx): ...')
    with pytest.raises(AgentInvalid, match="image is of microVMs"):
        read(f"{path}:f")
