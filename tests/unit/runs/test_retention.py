"""Runs whose logs were pruned: what is told of them still, and what is not."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from perdure.context import sqlite
from perdure.errors import Conflict, NotFound, Unavailable
from perdure.model import RunState
from perdure.runs import forkkeys, retention
from perdure.runs.record import from_head
from perdure.runs.retention import Retention
from perdure.testing.clock import FakeClock
from perdure.testing.machines import Ask
from perdure.testing.programs import Steps, approval

DAY_S = 86400.0


def program() -> Steps:
    begun = yield Ask("begin", {})
    if begun.value["agent"].endswith(":main"):
        yield Ask("wait", {"kind": "child", "function": "child"})
        yield approval()
    yield Ask("complete", {"result": 1})


def decides() -> Steps:
    yield approval()
    yield Ask("complete", {"result": 1})


async def pruned(house: Any) -> tuple[str, list[str]]:
    """A run with two branches and a child, and that."""
    run_id = await house.start(program)
    await house.waits(run_id, "approval")
    await house.engine.rewind(run_id, (await house.engine.info(run_id)).seq)
    await house.waits(run_id, "approval")
    await house.engine.approve(run_id, None, approved=True)
    info = await house.ends(run_id)
    await house.released(run_id)
    await retention.prune(house.context, run_id)
    return run_id, info.children


async def test_a_pruned_parent_is_listed_and_shown_with_its_children(house: Any) -> None:
    run_id, children = await pruned(house)
    assert len(children) == 1
    assert (await house.engine.info(run_id)).children == children
    assert {info.id for info in await house.engine.runs()} == {run_id, *children}
    ((tree,), of_one) = await house.engine.trees(), await house.engine.trees(run_id)
    assert of_one == [tree]
    assert [branch["why"] for branch in tree["branches"]] == ["", ""]
    assert [child["id"] for child in tree["children"]] == children


async def test_what_was_forked_with_a_key_is_forgotten_with_the_log(house: Any) -> None:
    run_id = await house.start(decides)
    await house.reaches(run_id, RunState.SUSPENDED)
    (fork,), _ = await house.engine.fork_once(run_id, key="k")
    for one in (run_id, fork.id):
        await house.reaches(one, RunState.SUSPENDED)
        await house.engine.approve(one, None, approved=True)
        await house.ends(one)
        await house.released(one)
    with pytest.raises(Conflict, match="shared by its forks"):
        await retention.prune(house.context, run_id)
    assert len(await house.context.kept(forkkeys.kind(run_id))) == 1
    for one in (fork.id, run_id):
        await retention.prune(house.context, one)
    assert await house.context.kept(forkkeys.kind(run_id)) == []
    with pytest.raises(NotFound, match="pruned"):
        await house.engine.fork_once(run_id, key="k")


async def test_whoever_follows_a_pruned_log_is_told(house: Any) -> None:
    run_id, _ = await pruned(house)
    with pytest.raises(NotFound, match="pruned"):
        async for _ in house.engine.follow(run_id, 0):
            pass
    seq = (await house.engine.info(run_id)).seq
    assert [entry async for entry in house.engine.follow(run_id, seq)] == []  # whoever had all of it


def ends() -> Steps:
    yield Ask("complete", {"result": 1})


async def is_pruned(house: Any, run_id: str) -> bool:
    return bool((await house.context.head(run_id)).pruned)


async def test_old_logs_go_by_themselves_in_small_portions(house: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "PORTION", 2)
    clock = FakeClock()
    kept, slept = Retention(house.context, clock, keep_s=DAY_S), asyncio.Queue[float]()
    real, sweeps = clock.sleep_until, list[Any]()

    async def sleep_until(moment: float) -> None:
        slept.put_nowait(moment - clock.monotonic())
        await real(moment)

    async def sweep() -> Any:
        sweeps.append(await type(house.context).sweep(house.context))
        return sweeps[-1]

    clock.sleep_until = sleep_until  # type: ignore[method-assign]
    house.context.sweep = sweep
    waits = await house.start(program)  # and has a child, which ends
    await house.waits(waits, "approval")
    runs = [await house.start(ends) for _ in range(5)]
    for run_id in runs:
        await house.ends(run_id)
        await house.released(run_id)
    parent = runs[0]
    (fork,) = await house.engine.fork(parent)
    await house.ends(fork.id)
    await house.released(fork.id)
    looking = asyncio.create_task(kept.run())

    async def pause() -> float:
        return await asyncio.wait_for(slept.get(), 20)

    try:
        assert await pause() == retention.LOOK_S and not any([await is_pruned(house, one) for one in runs])
        clock.move(2 * DAY_S)
        for gone in (0, 2, 4):  # two are looked at: the child and the parent, which shares with its fork; then two runs
            assert await pause() == retention.PAUSE_S
            assert sum([await is_pruned(house, one) for one in runs]) == gone
            clock.move(retention.PAUSE_S)
        while (seconds := await pause()) == retention.PAUSE_S:
            clock.move(seconds)
        assert await is_pruned(house, fork.id) and len(sweeps) == 1
        assert not await is_pruned(house, parent) and not await is_pruned(house, waits)
        clock.move(retention.LOOK_S)  # its fork is gone now
        while (seconds := await pause()) == retention.PAUSE_S:
            clock.move(seconds)
        assert await is_pruned(house, parent) and not await is_pruned(house, waits)
        assert len(sweeps) == 1  # one a day
        assert (await house.engine.info(parent)).result == 1
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)


async def test_what_was_taken_up_from_another_home_is_kept_as_if_it_had_ended_then(
    house: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "PAUSE_S", 0.0)
    run_id = await house.start(ends)
    await house.ends(run_id)
    await house.released(run_id)
    here, clock = await sqlite.open(tmp_path / "other.db"), FakeClock()
    try:
        head = await here.take_up(house.context.export(run_id), retention.taken_up)
        ended, taken_up = (await here.read(run_id))[-1].time, from_head(head).taken_up
        kept = Retention(here, clock, keep_s=DAY_S)
        for before, is_gone in (((ended + taken_up) / 2, False), (taken_up + 1, True)):
            clock.set(before + DAY_S)
            await kept._look()
            assert (await here.head(run_id)).pruned is is_gone
    finally:
        await here.close()


async def test_what_another_server_drops_meanwhile_is_passed_over(house: Any) -> None:
    runs = [await house.start(ends) for _ in range(3)]
    for run_id in runs:
        await house.ends(run_id)
        await house.released(run_id)

    async def heads(**asked: Any) -> Any:
        found = await type(house.context).heads(house.context, **asked)
        if runs[0] in {head.run_id for head in found}:
            await house.context.prune(runs[0])
        return found

    house.context.heads = heads
    try:
        assert await retention.prune_older(house.context, time.time() + DAY_S, dry_run=False) == runs[1:]
    finally:
        del house.context.heads


async def test_a_look_that_fails_is_looked_again(house: Any) -> None:
    clock, asked = FakeClock(), asyncio.Queue[int]()

    async def heads(**_: Any) -> list[Any]:
        asked.put_nowait(1)
        raise Unavailable("the database is away")

    house.context.heads = heads
    looking = asyncio.create_task(Retention(house.context, clock, keep_s=DAY_S).run())
    try:
        for _ in range(3):
            await asyncio.wait_for(asked.get(), 20)
            await asyncio.sleep(0)  # until it sleeps
            clock.move(retention.LOOK_S)
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        del house.context.heads
