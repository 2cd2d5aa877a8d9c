"""Runs whose start, or that of a child, was not answered: what was made goes on all the same."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import msgspec
import pytest

from perdure.errors import Unavailable
from perdure.model import RunState
from perdure.testing.house import AGENT
from perdure.testing.machines import Ask
from perdure.testing.programs import Steps

KEYED = msgspec.structs.replace(AGENT, key="k")


def quick() -> Steps:
    yield Ask("complete", {"result": 1})


def is_away_once(house: Any, at: int = 1) -> None:
    """The database refuses the first entry of one run, the ``at``th that is made."""
    real, asked = house.log.append, 0

    async def append(run_id: str, entries: Any, **how: Any) -> Any:
        nonlocal asked
        asked += bool(entries) and entries[0].kind == "run.queued"
        if asked == at and entries[0].kind == "run.queued":
            raise Unavailable("the database is away")
        return await real(run_id, entries, **how)

    house.log.append = append


async def settled(name: str) -> None:
    """What is looked for in the background, by this name, was found, or is not there."""
    (settling,) = [task for task in asyncio.all_tasks() if task.get_name() == name]
    await asyncio.wait_for(settling, 10)


async def test_a_run_whose_first_entry_was_refused_goes_on_with_it_as_soon_as_it_can_be_written(house: Any) -> None:
    is_away_once(house)
    house.machines.program = quick
    with pytest.raises(Unavailable):
        await house.engine.start(KEYED)
    info, is_new = await house.engine.start(KEYED)
    assert not is_new
    assert (await house.ends(info.id)).result == 1
    assert [entry.kind for entry in await house.entries(info.id)][:2] == ["run.queued", "run.starting"]


async def test_a_run_whose_starter_hung_up_goes_on(house: Any) -> None:
    real, reached = house.log.create, asyncio.Event()

    async def create(*args: Any, **how: Any) -> Any:
        reached.set()
        return await real(*args, **how)

    house.log.create = create
    house.machines.program = quick
    asking = asyncio.create_task(house.engine.start(KEYED))
    await reached.wait()
    asking.cancel()
    await asyncio.wait({asking})
    info, is_new = await house.engine.start(KEYED)
    assert not is_new
    assert (await house.ends(info.id)).result == 1


async def test_a_run_that_was_made_without_an_answer_is_moved_along_when_it_is_asked_for_again(house: Any) -> None:
    real = house.log.create

    async def create(*args: Any, **how: Any) -> Any:
        await real(*args, **how)
        raise Unavailable("the database does not answer")

    house.log.create = create
    house.machines.program = quick
    with pytest.raises(Unavailable):
        await house.engine.start(KEYED)
    house.log.create = real
    info, is_new = await house.engine.start(KEYED)
    assert not is_new
    assert (await house.ends(info.id)).result == 1


@pytest.mark.parametrize("was_made", [True, False])
async def test_a_run_without_a_key_that_was_made_without_an_answer_goes_on(house: Any, was_made: bool) -> None:
    create, head, made, looks = house.log.create, house.log.head, list[str](), 0

    async def cut(run_id: str, *args: Any, **how: Any) -> Any:
        made.append(run_id)
        if was_made:
            await create(run_id, *args, **how)
        house.log.head = away
        raise Unavailable("the connection broke in the middle of a commit")

    async def away(run_id: str) -> Any:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise Unavailable("the database is away")
        return await head(run_id)

    house.log.create = cut
    house.machines.program = quick
    with pytest.raises(Unavailable):
        await house.engine.start(AGENT)
    house.log.create = create
    await settled(f"start-{made[0]}")  # nobody asks for it again
    assert looks >= 2
    if was_made:
        assert (await house.ends(made[0])).result == 1
        assert [entry.kind for entry in await house.entries(made[0])][:2] == ["run.queued", "run.starting"]
    else:
        assert not house.engine.has(made[0])


@pytest.mark.parametrize("lost", ["entry", "answer"])
async def test_a_child_that_was_made_and_not_begun_is_begun(house: Any, lost: str) -> None:
    def program() -> Steps:
        begun = yield Ask("begin", {})
        if begun.value["agent"].endswith(":main"):
            said = yield Ask("wait", {"kind": "child", "function": "child"})
            yield Ask("complete", {"result": said.value["result"]})
        yield Ask("complete", {"result": "grown"})

    if lost == "entry":
        is_away_once(house, at=2)
    else:
        real, made = house.log.create, 0

        async def create(*args: Any, **how: Any) -> Any:
            nonlocal made
            made += 1
            found = await real(*args, **how)
            if made == 2:
                raise Unavailable("the database does not answer")
            return found

        house.log.create = create
    run_id = await house.start(program)
    assert (await house.ends(run_id)).result == "grown"


@pytest.mark.parametrize("is_shelved", [False, True])
async def test_an_answer_of_which_nobody_knew_whether_it_was_kept_is_seen_when_the_database_is_back(
    house: Any, is_shelved: bool
) -> None:
    def program() -> Steps:
        said = yield Ask("wait", {"kind": "approval", "name": "Go on?"})
        yield Ask("complete", {"result": said.value["approved"]})

    if is_shelved:
        house.settings = dataclasses.replace(house.settings, shelve_after_s=0.0)
        await house.restart()
    run_id = await house.start(program)
    await house.reaches(run_id, RunState.SUSPENDED)
    append, head, looks = house.log.append, house.log.head, 0

    async def cut(*args: Any, **how: Any) -> Any:
        await append(*args, **how)
        house.log.append, house.log.head = append, away
        raise Unavailable("the connection broke in the middle of a commit")

    async def away(*args: Any) -> Any:
        nonlocal looks
        looks += 1
        if looks < 3:
            raise Unavailable("the database is away")
        return await head(*args)

    house.log.append = cut
    with pytest.raises(Unavailable):
        await house.engine.approve(run_id, None, approved=True, by="ada")
    house.log.append = append
    async with house.engine._shelf.held(run_id) as run:
        assert run is not None and await run.until(lambda: run.ended, 10)  # nobody writes to it, or asks again
    assert (await house.ends(run_id)).result is True
    assert looks >= 3


def waiting() -> Steps:
    said = yield Ask("wait", {"kind": "approval", "name": "Go on?"})
    yield Ask("complete", {"result": said.value["approved"]})


async def test_forks_that_were_made_without_an_answer_are_moved_along_when_they_are_asked_for_again(house: Any) -> None:
    run_id = await house.start(waiting)
    await house.reaches(run_id, RunState.SUSPENDED)
    real = house.log.branch_off

    async def branch_off(*args: Any, **how: Any) -> Any:
        await real(*args, **how)
        raise Unavailable("the database does not answer")

    house.log.branch_off = branch_off
    with pytest.raises(Unavailable):
        await house.engine.fork_once(run_id, count=2, key="k")
    house.log.branch_off = real
    made, is_new = await house.engine.fork_once(run_id, count=2, key="k")
    assert len(made) == 2 and not is_new
    for fork in made:
        await house.reaches(fork.id, RunState.SUSPENDED)


async def test_a_fork_without_a_key_that_was_made_without_an_answer_goes_on(house: Any) -> None:
    run_id = await house.start(waiting)
    await house.reaches(run_id, RunState.SUSPENDED)
    real, made = house.log.branch_off, list[str]()

    async def branch_off(fork_id: str, *args: Any, **how: Any) -> Any:
        await real(fork_id, *args, **how)
        made.append(fork_id)
        raise Unavailable("the database does not answer")

    house.log.branch_off = branch_off
    with pytest.raises(Unavailable):
        await house.engine.fork(run_id)
    await settled(f"fork-{made[0]}")
    await house.reaches(made[0], RunState.SUSPENDED)


@pytest.mark.parametrize("was_done", [True, False])
async def test_a_rewind_of_a_run_that_had_ended_is_done_though_its_answer_was_lost(house: Any, was_done: bool) -> None:
    run_id = await house.start(waiting)
    await house.reaches(run_id, RunState.SUSPENDED)
    await house.engine.approve(run_id, None, approved=False)
    await house.ends(run_id)
    await house.released(run_id)
    at = (await house.entries(run_id, "wait.completed"))[0].seq - 1
    real = house.log.fork

    async def fork(*args: Any, **how: Any) -> Any:
        if was_done:
            await real(*args, **how)
        raise Unavailable("the connection broke in the middle of a commit")

    house.log.fork = fork
    with pytest.raises(Unavailable):
        await house.engine.rewind(run_id, at, key="back")
    house.log.fork = real
    if was_done:
        async with house.engine._shelf.held(run_id) as run:  # nobody asks for it again
            assert run is not None and await run.until(lambda: run.state is RunState.SUSPENDED, 10)
    assert (await house.engine.rewind(run_id, at, key="back")).branch == 2  # once
    await house.reaches(run_id, RunState.SUSPENDED)
    await house.engine.approve(run_id, None, approved=True)
    assert (await house.ends(run_id)).result is True
