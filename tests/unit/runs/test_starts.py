"""A run's start: what is refused, what is tried again, and one start for one key."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.errors import InvalidValue, MachineFailed, NotFound, Unavailable
from perdure.model import RunState
from perdure.testing.house import nothing
from perdure.testing.machines import Ask
from perdure.testing.programs import Steps


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source": ""}, "either an agent or a command"),
        ({"command": ["x"]}, "either an agent or a command"),
        ({"image": ""}, "names no image"),
        ({"file": "../x.py"}, "not the name of a Python file"),
        ({"function": "a b"}, "not the name of a function"),
        ({"memory_mib": -1}, "memory_mib is negative"),
    ],
)
async def test_wrong_requests_start_nothing(house: Any, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidValue, match=words):
        await house.start(nothing, **changes)
    assert await house.engine.runs() == []


async def test_wrong_input_of_a_start_fails_at_once_with_its_error(house: Any) -> None:
    async def refuse() -> None:
        raise NotFound("no such image: nope", hint="`fcrun images` lists them.")

    house.machines.before["start"] = refuse
    info = await house.ends(await house.start(nothing))
    assert info.error["code"] == "not-found"
    assert (info.recoveries, info.error["hint"]) == (0, "`fcrun images` lists them.")


async def test_repeated_failure_without_progress_fails_with_its_cause(house: Any) -> None:
    async def refuse() -> None:
        raise MachineFailed("the emulated host is on fire")

    house.machines.before["start"] = refuse
    run_id = await house.start(nothing)
    info = await house.ends(run_id)
    assert info.state is RunState.FAILED
    assert "gave up after 6 failures in a row: start-failed (the emulated host is on fire)" in info.error["message"]


async def test_a_node_that_is_away_does_not_fail_a_start(house: Any) -> None:
    tries = 0

    async def away() -> None:
        nonlocal tries
        tries += 1
        if tries <= 9:
            raise Unavailable("the node is away")

    house.machines.before["start"] = away

    def program() -> Steps:
        yield Ask("complete", {"result": 1})

    run_id = await house.start(program)
    assert (await house.ends(run_id)).result == 1
    assert tries == 10
