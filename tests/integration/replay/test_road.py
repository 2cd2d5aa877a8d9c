"""An agent on the replay road: parked with nothing running, ended at any moment, and never asked twice."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from perdure.errors import Unsupported
from perdure.model import Retry, RunState
from perdure.runs.policy import Policy
from perdure.testing.house import Provider
from perdure.testing.workers import WorkerHouse

WHOLE = """
def f(ctx: Context, topic: str):
    first = ctx.chat(f"What are {topic}?").text
    ctx.emit("said", first)
    drawn = ctx.step("draw", lambda: open(LEDGER, "a").write("x"))
    verdict = ctx.approval("Go on?", show=first)
    told = []
    second = ctx.chat("Go on.", on_delta=told.append).text
    print("done")
    return [first, drawn, verdict.approved, second, told]
"""


def whole(folder: Path) -> str:
    return f"LEDGER = {str(folder / 'ledger')!r}\n" + WHOLE


async def test_it_is_parked_while_a_model_thinks_and_hears_the_answer_for_the_first_time(
    road: WorkerHouse, provider: Provider
) -> None:
    provider.silence = asyncio.Event()
    source = "def f(ctx: Context):\n    text = ctx.chat('one').text\n    ctx.wait_for('go')\n    return text\n"
    run_id = await road.start(source, policy=Policy(think_grace_s=0.03))
    await road.until(run_id, "run.suspended")
    provider.silence.set()
    await road.until(run_id, "run.suspended", 2)  # by the signal that it waits for
    info = await road.engine.info(run_id)
    assert (info.turns_asked, info.turns_replayed, provider.requests) == (1, 0, 1)
    await road.engine.signal(run_id, "go", None)  # the function runs again, and hears it again
    assert await road.result(run_id) == "answer to one"
    info = await road.engine.info(run_id)
    assert (info.turns_asked, info.turns_replayed, provider.requests) == (1, 1, 1)


async def test_it_is_parked_with_nothing_running_and_goes_on(
    road: WorkerHouse, provider: Provider, tmp_path: Path
) -> None:
    run_id = await road.start(whole(tmp_path), {"topic": "owls"})
    await road.until(run_id, "run.suspended")
    assert not road.workers._limit.locked() and not Path(f"/proc/{road.zygote}/task/{road.zygote}/children").read_text()
    await road.engine.approve(run_id, None, approved=True)
    result = await road.result(run_id)
    assert result[:3] == ["answer to What are owls?", 1, True] and "".join(result[4]) == result[3]
    assert provider.requests == 2 and (tmp_path / "ledger").read_text() == "x"
    info = await road.engine.info(run_id)
    assert info.durability == "replay" and info.snapshot is None and info.recoveries == 0
    kinds = [entry.kind for entry in await road.entries(run_id)]
    assert kinds.count("emit") == kinds.count("step.result") == kinds.count("wait.started") == 1
    assert "snapshot" not in kinds and "diverged" not in kinds
    assert await road.engine.output(run_id, 1000) == b"done\n"
    assert [entry.key for entry in await road.entries(run_id, "emit")] == ["main/emit:said/0"]


async def test_a_killed_worker_is_recovered_from_the_log(road: WorkerHouse, provider: Provider, tmp_path: Path) -> None:
    road.settings = replace(road.settings, idle_grace_s=60.0)
    await road.down()
    await road.up()
    run_id = await road.start(whole(tmp_path), {"topic": "owls"})
    await road.until(run_id, "wait.started")
    os.kill(road.worker(run_id), signal.SIGKILL)
    lost = await road.until(run_id, "run.recovering")
    assert (lost.payload["cause"], lost.payload["detail"]) == ("worker-killed", "signal 9")
    told = (await road.until(run_id, "replayed")).payload
    assert (told["turns"], told["steps"], told["waits"], told["others"]) == (1, 1, 0, 1), told
    await road.until(run_id, "run.waiting", 2)
    await road.engine.approve(run_id, None, approved=False)
    assert (await road.result(run_id))[2] is False
    assert provider.requests == 2 and (tmp_path / "ledger").read_text() == "x"


async def test_a_zygote_that_is_killed_takes_its_workers_along_and_another_one_comes(
    road: WorkerHouse, tmp_path: Path
) -> None:
    run_id = await road.start("def f(ctx: Context):\n    return ctx.wait_for('a') + ctx.wait_for('b')")
    await road.until(run_id, "wait.started")
    first = road.zygote
    os.kill(first, signal.SIGKILL)
    await road.engine.signal(run_id, "a", 1)
    await road.engine.signal(run_id, "b", 2)
    assert await road.result(run_id) == 3


async def test_a_server_that_ends_leaves_runs_that_the_next_one_goes_on_with(
    road: WorkerHouse, provider: Provider, tmp_path: Path
) -> None:
    run_id = await road.start(whole(tmp_path), {"topic": "owls"})
    await road.until(run_id, "wait.started")
    await road.down()
    await road.up()
    await road.until(run_id, "run.suspended")
    await road.down()
    await road.up()
    await road.engine.approve(run_id, None, approved=True)
    assert (await road.result(run_id))[2] is True
    assert provider.requests == 2 and (tmp_path / "ledger").read_text() == "x"


@pytest.mark.parametrize("asks", ["ctx.now()", "ctx.step('inner', int)", "asyncio.gather(ctx.uuid(), ctx.random())"])
async def test_a_step_that_asks_the_host_fails_at_once(road: WorkerHouse, asks: str) -> None:
    """Not only when the function runs again, and finds in the log what it did not ask."""
    run_id = await road.start(
        f"""
        import asyncio
        from perdure.errors import StepFailed
        async def f(ctx: AsyncContext):
            async def outer():
                return await {asks}
            try:
                await ctx.step("outer", outer)
            except StepFailed as failure:
                await ctx.wait_for("go")
                return [failure.message, await ctx.step("later", int, 3)]
        """
    )
    await road.until(run_id, "run.suspended")
    await road.engine.signal(run_id, "go", None)
    told, later = await road.result(run_id)
    assert "ctx is used in step 'outer'" in told and "a plain function" in told and later == 3


async def test_a_run_that_is_cancelled_tells_its_function_once_also_when_it_runs_again(
    road: WorkerHouse, tmp_path: Path
) -> None:
    text = f"""
        from perdure.agent import Cancelled
        def f(ctx: Context):
            try:
                ctx.wait_for("never")
            except Cancelled:
                ctx.step("clean up", lambda: open({str(tmp_path / "ledger")!r}, "a").write("x"))
                ctx.wait_for("go on")
                raise
        """
    run_id = await road.start(text)
    await road.until(run_id, "run.suspended")
    await road.engine.cancel(run_id, "enough")
    await road.until(run_id, "wait.started", 2)
    os.kill(road.worker(run_id), signal.SIGKILL)
    await road.until(run_id, "run.recovering")
    await road.engine.signal(run_id, "go on", None)
    assert (await road.ends(run_id)).state is RunState.CANCELLED
    assert (tmp_path / "ledger").read_text() == "x"


async def test_many_waits_at_once_are_one_call(road: WorkerHouse) -> None:
    run_id = await road.start(
        """
        def f(ctx: Context):
            first = ctx.all(ctx.later.wait_for("a"), ctx.later.wait_for("b"))
            return [first, ctx.any(ctx.later.wait_for("c"), ctx.later.sleep("1h"))[0]]
        """
    )
    await road.until(run_id, "run.suspended")
    for name in "bac":
        await road.engine.signal(run_id, name, name)
    assert await road.result(run_id) == [["a", "b"], 0]


async def test_a_step_that_is_tried_again_keeps_its_idempotency_key(road: WorkerHouse, tmp_path: Path) -> None:
    run_id = await road.start(
        f"""
        LEDGER = {str(tmp_path / "ledger")!r}
        def f(ctx: Context):
            ctx.step("other", int)
            return ctx.step("flaky", flaky, retries=2, backoff=0.1)
        def flaky(idempotency_key):
            open(LEDGER, "a").write(idempotency_key + "\\n")
            if len(open(LEDGER).readlines()) < 3:
                raise OSError("not yet")
            return "done"
        """
    )
    assert await road.result(run_id) == "done"
    keys = (tmp_path / "ledger").read_text().split()
    assert len(keys) == 3 and len(set(keys)) == 1


async def test_a_run_that_failed_is_tried_again_from_its_log(road: WorkerHouse, tmp_path: Path) -> None:
    run_id = await road.start(
        f"""
        import os
        LEDGER, MARK = {str(tmp_path / "ledger")!r}, {str(tmp_path / "mark")!r}
        def f(ctx: Context):
            ctx.step("once", lambda: open(LEDGER, "a").write("x"))
            if not os.path.exists(MARK):
                open(MARK, "w").close()
                raise OSError("not yet")
            return "done"
        """,
        retry={"agent-failed": Retry(attempts=2, delay_s=0.01)},
    )
    assert await road.result(run_id) == "done"
    assert (tmp_path / "ledger").read_text() == "x"


async def test_children_are_on_their_parent_s_road(road: WorkerHouse) -> None:
    run_id = await road.start(
        """
        @agent(durability="replay")
        def f(ctx: Context):
            return [ctx.run(double, number=n) for n in (1, 2)]
        @agent(durability="replay")
        def double(ctx: Context, number: int):
            return 2 * number
        """
    )
    assert await road.result(run_id) == [2, 4]
    infos = await road.engine.runs()
    assert len(infos) == 3 and {info.durability for info in infos} == {"replay"}


async def test_a_fork_goes_on_from_an_entry(road: WorkerHouse, tmp_path: Path) -> None:
    run_id = await road.start(
        f"""
        LEDGER = {str(tmp_path / "ledger")!r}
        def f(ctx: Context):
            ctx.step("once", lambda: open(LEDGER, "a").write("x"))
            return ctx.wait_for("go")
        """
    )
    at = (await road.until(run_id, "step.result")).seq
    await road.until(run_id, "run.suspended")
    fork = (await road.engine.fork(run_id, at=at))[0].id
    await road.until(fork, "run.suspended")
    for one, value in ((run_id, 1), (fork, 2)):
        await road.engine.signal(one, "go", value)
        assert await road.result(one) == value
    assert (tmp_path / "ledger").read_text() == "x"


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_what_is_drawn_is_drawn_once(road: WorkerHouse, kind: str) -> None:
    wait, context = ("await ", "AsyncContext") if kind == "async def" else ("", "Context")
    run_id = await road.start(
        f"""
        {kind} f(ctx: {context}):
            drawn = [{wait}ctx.now(), {wait}ctx.random(), {wait}ctx.uuid(), {wait}ctx.uuid()]
            {wait}ctx.emit("drawn", drawn)
            {wait}ctx.wait_for("go")
            return drawn
        """
    )
    first = (await road.until(run_id, "emit")).payload["value"]
    await road.until(run_id, "run.suspended")
    await road.engine.signal(run_id, "go", None)
    assert await road.result(run_id) == first
    now, number, one, other = first
    assert abs(now - time.time()) < 60 and 0 <= number < 1 and uuid.UUID(one).version == 4 and one != other


async def test_cancel_ends_a_function_that_never_yields(road: WorkerHouse, tmp_path: Path) -> None:
    run_id = await road.start(
        """
        def f(ctx: Context):
            ctx.emit("begun")
            while True:
                pass
        """
    )
    await road.until(run_id, "emit")
    pid = road.worker(run_id)
    await road.engine.cancel(run_id, "enough", clean_up_s=0)
    run = road.engine._runs[run_id]
    assert await run.until(lambda: run.record.released, 20)
    assert not Path(f"/proc/{pid}").exists() and not (road.home.root / "workers" / run_id).exists()
    assert (await road.engine.info(run_id)).state is RunState.CANCELLED


async def test_what_is_of_machines_is_nothing_here_and_signals_are_sent_once(road: WorkerHouse) -> None:
    other = await road.start("def f(ctx: Context):\n    return ctx.wait_for('go')")
    calls = "ctx.checkpoint(); ctx.signal(run, 'go', 7)"
    text = f"def f(ctx: Context, run: str):\n    {calls}\n    return ctx.wait_for('end')"
    run_id = await road.start(text, {"run": other})
    await road.until(run_id, "run.suspended")
    with pytest.raises(Unsupported, match="no machine to capture"):
        await road.engine.checkpoint(run_id)
    assert await road.result(other) == 7
    await road.engine.signal(run_id, "end", 1)
    assert await road.result(run_id) == 1  # it ran again from its start, and heard both from its log
    assert len(await road.entries(run_id, "note")) == 2


async def test_the_modules_beside_it_are_those_of_its_start(road: WorkerHouse) -> None:
    source = "import near\nfrom tools import pick\ndef f(ctx: Context):\n    ctx.wait_for('go')\n"
    source += "    return [near.NAME, pick()]\n"
    modules = {"near.py": b"NAME = 'owl'", "tools/__init__.py": b"from tools.inner import pick"}
    modules["tools/inner.py"] = (
        b"from pathlib import Path\ndef pick(): return (Path(__file__).parent / 'prompt').read_text()"
    )
    run_id = await road.start(source, modules={**modules, "tools/prompt": b"Be kind."})
    await road.until(run_id, "run.suspended")
    await road.down()
    shutil.rmtree(road.home.root / "workers")  # as on another server
    await road.up()
    await road.engine.signal(run_id, "go", None)
    assert await road.result(run_id) == ["owl", "Be kind."]
