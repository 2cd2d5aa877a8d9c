"""Keys start a run once, in their scope and for their time; tags and metadata can be set and looked for."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from perdure.errors import Conflict, InvalidValue
from perdure.model import RunState
from perdure.testing.clock import FakeClock
from perdure.testing.house import AGENT, nothing
from perdure.testing.machines import Ask
from perdure.testing.programs import Steps, approval


def waits() -> Steps:
    yield approval()


async def start(house: Any, **changes: Any) -> tuple[str, bool]:
    house.machines.program = waits
    info, is_new = await house.engine.start(msgspec.structs.replace(AGENT, **changes))
    return info.id, is_new


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"key": ""}, "key has 0 characters"),
        ({"key": "k" * 300}, "key has 300 characters"),
        ({"key_ttl_s": 5.0}, "key_ttl_s is of a key"),
        ({"key_scope": "team"}, "key_scope is of a key"),
        ({"key": "k", "key_ttl_s": 0.0}, "key_ttl_s is 0"),
        ({"tags": {"": "x"}}, "not the name of a tag: ''"),
        ({"tags": {"a=b": "x"}}, "not the name of a tag: 'a=b'"),
        ({"tags": {"a": "x" * 300}}, "the tag 'a' has 300 characters"),
        ({"tags": {f"t{n}": "" for n in range(65)}}, "65 tags"),
        ({"metadata": "x" * (2 << 20)}, "metadata"),
    ],
)
async def test_wrong_ones_start_nothing(house: Any, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidValue, match=words):
        await house.start(nothing, **changes)
    assert await house.engine.runs() == []


async def test_a_key_is_unique_in_its_scope(house: Any) -> None:
    one, _ = await start(house, key="owls", input={"a": 1, "b": 2})
    assert await start(house, key="owls", input={"b": 2, "a": 1}, source="def main(ctx): 'newer'") == (one, False)
    other, is_new = await start(house, key="owls", function="other")
    assert is_new and other != one
    team, is_new = await start(house, key="owls", key_scope="team", function="other")
    assert is_new
    with pytest.raises(Conflict, match=f"'owls' is that of run {team}, of agent.py:other"):
        await start(house, key="owls", key_scope="team")
    with pytest.raises(Conflict, match=f"'owls' is that of run {one}, with another input") as refused:
        await start(house, key="owls", input={"a": 1})
    assert refused.value.details == {"run_id": one}
    started = await asyncio.gather(*(start(house, key="at once") for _ in range(10)))
    assert len({run_id for run_id, _ in started}) == 1 and [is_new for _, is_new in started].count(True) == 1


async def test_a_key_starts_another_run_once_its_time_is_over(house: Any) -> None:
    clock = await house.at(FakeClock())
    one, _ = await start(house, key="daily", key_ttl_s=60)
    clock.move(59)
    await house.restart()
    assert await start(house, key="daily") == (one, False)
    clock.move(2)
    started = await asyncio.gather(*(start(house, key="daily", input="another") for _ in range(5)))
    (two,) = {run_id for run_id, _ in started}
    assert two != one and [is_new for _, is_new in started].count(True) == 1
    clock.move(1e6)
    assert await start(house, key="daily", input="another") == (two, False)  # it has no such time
    assert (await house.engine.info(one)).state is not RunState.CANCELLED


async def test_tags_and_metadata_are_set_at_the_start_and_later_also_after_the_end(house: Any) -> None:
    def program() -> Steps:
        yield approval()
        yield Ask("complete", {"result": 1})

    run_id = await house.start(program, tags={"team": "owls", "for": "ann"}, metadata={"ticket": 7})
    await house.reaches(run_id, RunState.SUSPENDED)
    info = await house.engine.tag(run_id, {"for": None, "stage": "draft"})
    assert (info.tags, info.metadata) == ({"team": "owls", "stage": "draft"}, {"ticket": 7})
    with pytest.raises(InvalidValue, match="not the name"):
        await house.engine.tag(run_id, {"x=": "1"})
    await house.engine.approve(run_id, None, approved=True)
    await house.ends(run_id)
    await house.released(run_id)
    info = await house.engine.tag(run_id, {"stage": "done"}, metadata=None)
    assert (info.tags, info.metadata, info.state) == ({"team": "owls", "stage": "done"}, None, RunState.COMPLETED)
    await house.restart()
    assert (await house.engine.info(run_id)).tags == {"team": "owls", "stage": "done"}
    changes = [entry.payload for entry in await house.entries(run_id, "tagged")]
    assert changes == [{"tags": {"for": None, "stage": "draft"}}, {"tags": {"stage": "done"}, "metadata": None}]


async def test_runs_are_found_by_their_tags(house: Any) -> None:
    one = await house.start(waits, tags={"team": "owls", "n": "1"})
    two = await house.start(waits, tags={"team": "owls", "n": "2"})
    await house.start(waits)
    assert [info.id for info in await house.engine.runs(tags={"team": "owls"})] == [two, one]
    assert [info.id for info in await house.engine.runs(tags={"team": "owls", "n": "1"})] == [one]
    assert await house.engine.runs(tags={"team": "bats"}) == []
    await house.engine.cancel(one, clean_up_s=0)
    assert [info.id for info in await house.engine.runs(["cancelled"], tags={"team": "owls"})] == [one]
