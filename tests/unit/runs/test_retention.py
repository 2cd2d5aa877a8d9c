"""Runs whose logs were pruned: what is told of them still, and what is not."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.errors import NotFound
from perdure.runs import retention
from perdure.testing.machines import Ask
from perdure.testing.programs import Steps, approval


def program() -> Steps:
    begun = yield Ask("begin", {})
    if begun.value["agent"].endswith(":main"):
        yield Ask("wait", {"kind": "child", "function": "child"})
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


async def test_whoever_follows_a_pruned_log_is_told(house: Any) -> None:
    run_id, _ = await pruned(house)
    with pytest.raises(NotFound, match="pruned"):
        async for _ in house.engine.follow(run_id, 0):
            pass
    seq = (await house.engine.info(run_id)).seq
    assert [entry async for entry in house.engine.follow(run_id, seq)] == []  # whoever had all of it
