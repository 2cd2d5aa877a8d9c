"""What nobody will go on from, found by the next server: snapshots and sandboxes that a killed one left at its node."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from perdure.errors import SnapshotInvalid, Unavailable
from perdure.model import HeldSnapshot, RunState
from perdure.runs import strays
from perdure.runs.policy import NEVER_S, Policy
from perdure.runs.strays import loose
from perdure.testing.house import until
from perdure.testing.machines import Ask
from perdure.testing.programs import Steps


async def test_what_a_killed_server_was_about_to_give_up_is_given_up_by_the_next(
    house: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def program() -> Steps:
        yield Ask("wait", {"kind": "signal", "name": "go"})
        yield Ask("complete", {"result": "done"})

    reached, gate = asyncio.Event(), asyncio.Event()

    async def hang() -> None:
        reached.set()
        await gate.wait()

    house.machines.before["forget"] = hang
    run_id = await house.start(program, policy=Policy(idle_grace_s=NEVER_S, snapshots_kept=1))
    await house.reaches(run_id, RunState.WAITING)
    await house.engine.checkpoint(run_id, keep=True)
    sandbox_id = house.sandbox(run_id)
    position = (await house.machines.inspect(sandbox_id)).snapshot.position
    own = await house.machines.checkpoint(sandbox_id, None)  # a person's
    lost = await house.machines.checkpoint(sandbox_id, position)  # the server was killed before it wrote it down
    for _ in range(2):
        await house.engine.checkpoint(run_id)
    await reached.wait()
    there = house.machines.sandboxes[sandbox_id].captures
    named = {one["digest"] for one in (await house.engine.info(run_id)).snapshots}
    assert len(named) == 2 and len(there) == 5
    await house.down()
    newest = await house.machines.checkpoint(sandbox_id, position)  # it may be on its way into the record
    del house.machines.before["forget"]
    monkeypatch.setattr(strays, "AGAIN_S", 0.01)
    away = [Unavailable("the node is just starting")] * 2

    async def starting() -> None:
        if away:
            raise away.pop()

    async def forgotten() -> bool:
        return bool(house.machines.done.count("forget") >= 2)

    house.machines.before["of_runs"] = starting
    await house.up()
    await until(forgotten)
    assert set(there) == {*named, own.digest, newest.digest} and lost.digest not in there
    await house.engine.signal(run_id, "go", None)
    assert (await house.ends(run_id)).result == "done"


async def test_a_snapshot_that_the_next_server_cannot_give_up_keeps_no_other_and_no_sandbox(house: Any) -> None:
    def program() -> Steps:
        yield Ask("wait", {"kind": "signal", "name": "go"})
        yield Ask("complete", {"result": "done"})

    ended = await house.start(program)
    await house.waits(ended, "signal")
    left = house.machines.sandboxes[house.sandbox(ended)]
    await house.engine.signal(ended, "go", None)
    await house.ends(ended)
    await house.released(ended)
    run_id = await house.start(program, policy=Policy(idle_grace_s=NEVER_S))
    await house.waits(run_id, "signal")
    await house.engine.checkpoint(run_id)
    sandbox_id = house.sandbox(run_id)
    position = (await house.machines.inspect(sandbox_id)).snapshot.position
    lost = [await house.machines.checkpoint(sandbox_id, position) for _ in range(2)]
    await house.engine.checkpoint(run_id)
    await house.down()
    house.machines.sandboxes["left"] = left  # of a run that was let go of
    forget, there = house.machines.forget, house.machines.sandboxes[sandbox_id].captures

    async def fails_once(sandbox: str, digest: str) -> None:
        if digest == lost[0].digest:
            raise SnapshotInvalid("its manifest does not read")
        await forget(sandbox, digest)

    house.machines.forget = fails_once
    await house.up()
    await until(lambda: "left" not in house.machines.sandboxes)
    assert lost[0].digest in there and lost[1].digest not in there


async def test_what_is_named_by_a_record_under_a_former_digest_is_not_given_up(house: Any) -> None:
    def program() -> Steps:
        yield Ask("wait", {"kind": "signal", "name": "go"})

    run_id = await house.start(program, policy=Policy(idle_grace_s=NEVER_S))
    await house.reaches(run_id, RunState.WAITING)
    for _ in range(3):
        await house.engine.checkpoint(run_id)
    (seen,), record, here = await house.machines.of_runs(), house.engine._runs[run_id].record, house.machines.node
    replaced = msgspec.structs.replace
    first, second, third = record.snapshots
    compacted = [replace_digest(held, f"sha256:{number}") for number, held in enumerate(seen.snapshots)]
    assert loose(replaced(seen, snapshots=compacted), record, here) == []
    left = replaced(record, snapshots=[first, third])
    assert loose(seen, left, here) == [second.digest]
    assert loose(replaced(seen, snapshots=compacted), left, here) == ["sha256:1"]
    assert loose(seen, replaced(record, snapshots=[first]), here) == []  # they may be on their way
    for other in (replaced(left, released=True), replaced(left, sandbox_id="other")):
        assert loose(seen, other, here) == []


def replace_digest(held: HeldSnapshot, digest: str) -> HeldSnapshot:
    return HeldSnapshot(digests=[digest, *held.digests], position=held.position)
