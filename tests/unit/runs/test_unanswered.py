"""Runs whose start, or that of a child, was not answered: what was made goes on all the same."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from perdure.errors import Unavailable
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
