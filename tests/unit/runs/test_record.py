"""A run's record as older versions wrote it is read, and its run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from perdure.context.log import Head, NewHead
from perdure.model import NodePlace, RunState
from perdure.runs.record import from_head, to_value
from perdure.testing.machines import Ask
from perdure.testing.programs import Steps

GOLDEN = Path(__file__).parents[2] / "golden" / "run-record-1" / "suspended.json"
NEW = {"": ["node"], "snapshots": ["node", "sandbox", "store"]}  # what it did not have


def test_a_record_without_nodes_is_read() -> None:
    value = json.loads(GOLDEN.read_text())
    assert "node" not in value and not set(NEW["snapshots"]) & set(value["snapshots"][0])
    record = from_head(Head(run_id="r", key=None, created=0.0, epoch=1, branch=1, seq=9, version=1, value=value))
    assert (record.state, record.node, record.node_id) == (RunState.SUSPENDED, None, "")
    (one,) = record.restorable
    assert (one.digest, one.node, one.store) == (record.snapshot and record.snapshot.digest, "", "")
    assert record.unshared("s3://b/c", NodePlace(id="a", host="h", address="u")) is None  # nobody knows where it is
    again = to_value(record)
    assert {name: again[name] for name in value} | {"snapshots": value["snapshots"]} == value


async def test_its_run_goes_on_from_its_snapshot_and_from_then_on_says_where(house: Any) -> None:
    def program() -> Steps:
        yield Ask("wait", {"kind": "signal", "name": "go"})
        yield Ask("complete", {"result": "fine"})

    run_id = await house.start(program)
    await house.reaches(run_id, RunState.SUSPENDED)
    head = await house.context.head(run_id)
    for name in NEW[""]:
        head.value.pop(name, None)
    for one in head.value["snapshots"]:
        for name in NEW["snapshots"]:
            one.pop(name, None)
    new = NewHead(expected_version=head.version, value=head.value)
    await house.context.append(run_id, [], epoch=None, head=new)
    await house.restart()
    await house.engine.signal(run_id, "go", 1)
    info = await house.ends(run_id)
    assert (info.result, info.node) == ("fine", house.machines.node)
    assert house.machines.done.count("resume") == 1 and house.machines.done.count("start") == 1
