"""Agents on the replay road that fork themselves: each fork lives through the log of its maker, and has its number."""

from __future__ import annotations

from typing import Any

from perdure.errors import Unavailable
from perdure.model import RunState
from perdure.testing.house import Provider, until
from perdure.testing.workers import WorkerHouse

BEST = """
def f(ctx: Context):
    facts = ctx.chat("facts").text
    before = ctx.run_id
    forks = ctx.fork(3)
    if forks.number:
        assert ctx.run_id == forks.runs[forks.number - 1]
        draft = ctx.chat(f"{facts} {forks.number}").text
        ctx.wait_for("go")
        return draft
    assert ctx.run_id == before
    return ctx.all(*map(ctx.later.result, forks.runs))
"""
ASYNC = """
async def f(ctx: AsyncContext):
    forks = await ctx.fork(2)
    if forks.number:
        return await ctx.wait_for("go")
    return await asyncio.gather(*map(ctx.result, forks.runs))
"""


async def made(road: WorkerHouse, run_id: str) -> list[str]:
    """The forks of a run, once they are there."""
    forks: list[str] = (await road.until(run_id, "fork")).payload["forks"]

    async def are_there() -> bool:
        return {info.id for info in await road.engine.runs()} >= set(forks)

    await until(are_there)
    return forks


async def test_each_fork_has_its_number_and_the_maker_their_results(road: WorkerHouse, provider: Provider) -> None:
    run_id = await road.start(BEST)
    forks = await made(road, run_id)
    for one in forks:
        await road.until(one, "run.suspended")
    await road.until(run_id, "run.suspended")
    await road.down()
    await road.up()
    for one in forks:  # each worker begins at the start of its function, and is told once more
        await road.engine.signal(one, "go", None)
    drafts = [f"answer to answer to facts {number}" for number in (1, 2, 3)]
    assert await road.result(run_id) == drafts
    assert [await road.result(one) for one in forks] == drafts
    assert provider.requests == 4
    assert len(await road.engine.runs()) == 4


async def test_forks_that_a_lost_server_had_not_made_are_made_by_the_next(road: WorkerHouse) -> None:
    real, ids = road.log.branch_off, list[str]()

    async def dies(fork_id: str, *args: Any, **more: Any) -> Any:
        ids.append(fork_id)
        if len(ids) > 1:
            raise Unavailable("the server dies here")
        return await real(fork_id, *args, **more)

    road.log.branch_off = dies  # type: ignore[method-assign]  # this one server fails in between
    run_id = await road.start(BEST)
    forks = (await road.until(run_id, "fork")).payload["forks"]
    await until(lambda: len(ids) > 1)
    await road.until(forks[0], "run.suspended")
    await road.down()
    await road.up()
    assert await made(road, run_id) == forks
    for one in forks:
        await road.until(one, "run.suspended")
        await road.engine.signal(one, "go", None)
    assert len(await road.result(run_id)) == 3
    assert {info.id for info in await road.engine.runs()} == {run_id, *forks}


async def test_a_coroutine_forks_itself_and_one_of_them_is_cancelled(road: WorkerHouse) -> None:
    run_id = await road.start("import asyncio\n" + ASYNC)
    forks = await made(road, run_id)
    for one in forks:
        await road.until(one, "run.suspended")
    await road.engine.signal(forks[0], "go", "well")
    await road.engine.cancel(forks[1], "not wanted")
    info = await road.ends(run_id)
    assert info.state is RunState.FAILED and info.error is not None
    assert f"fork {forks[1]} failed" in info.error["message"]


async def test_another_number_of_forks_is_another_call(road: WorkerHouse) -> None:
    run_id = await road.start(BEST)
    await made(road, run_id)
    (entry,) = await road.entries(run_id, "fork")
    assert entry.key == "main/fork:3/0"


async def test_bad_numbers_are_refused(road: WorkerHouse) -> None:
    source = """
    def f(ctx: Context):
        said = []
        for count in (0, True, "2", 101):
            try:
                ctx.fork(count)
            except Exception as error:
                said.append(str(error).splitlines()[0])
        try:
            ctx.result("nobody")
        except Exception as error:
            said.append(str(error).splitlines()[0])
        return said
    """
    said = await road.result(await road.start(source))
    assert said == [
        "ctx.fork: 0 is no number of forks",
        "ctx.fork: True is no number of forks",
        "ctx.fork: '2' is no number of forks",
        "101 forks were asked for",
        "this run made no fork 'nobody'",
    ]
