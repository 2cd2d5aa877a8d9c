"""Servers that share a log on PostgreSQL: they write to the same runs, hear of each other, and believe the database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from perdure.context import exporting, sqlite
from perdure.context.log import ContextLog, NewEntry, NewHead
from perdure.errors import Conflict, LeaseLost, LogConflict, NotFound, ProtocolError, StaleEpoch

NOTE = [NewEntry(kind="note", payload={"n": 1, "text": "x" * 600})]


async def test_two_servers_append_to_the_same_runs(two_logs: list[ContextLog]) -> None:
    for run in range(3):
        await two_logs[0].create(f"run{run}", {})

    async def write(log: ContextLog, run: int) -> None:
        for _ in range(15):
            await log.append(f"run{run}", NOTE, epoch=1)

    await asyncio.gather(*(write(log, run) for log in two_logs for run in range(3) for _ in range(2)))
    for run in range(3):
        assert (await two_logs[1].head(f"run{run}")).seq == 60
        assert (await two_logs[0].verify(f"run{run}")).entries == 60


async def test_only_one_of_two_servers_gets_a_key(two_logs: list[ContextLog]) -> None:
    async def start(log: ContextLog, number: int) -> str:
        return (await log.create(f"run{number}", {}, key="owls")).run_id

    assert len(set(await asyncio.gather(*(start(two_logs[n % 2], n) for n in range(10))))) == 1
    results = await asyncio.gather(
        *(log.keep("queue", "a", n, expected_version=0) for n, log in enumerate(two_logs)), return_exceptions=True
    )
    assert len([result for result in results if isinstance(result, BaseException)]) == 1


async def test_a_follower_hears_of_what_another_server_writes(two_logs: list[ContextLog]) -> None:
    await two_logs[0].create("run", {})
    following = two_logs[1].follow("run")
    for seq in range(1, 6):
        await two_logs[0].append("run", NOTE, epoch=1)
        entry = await asyncio.wait_for(anext(following), 10)
        assert entry.seq == seq
    await following.aclose()  # type: ignore[attr-defined]  # follow() says AsyncIterator, and is a generator


async def test_a_follower_hears_of_it_without_any_notification(two_logs: list[ContextLog]) -> None:
    await two_logs[0].create("run", {})
    # Nothing outside can make notifications go astray.
    two_logs[0]._database._notices.channel = "somewhere_else"  # type: ignore[attr-defined]
    following = two_logs[1].follow("run")
    await two_logs[0].append("run", NOTE, epoch=1)
    assert (await asyncio.wait_for(anext(following), 10)).seq == 1
    waiting = asyncio.ensure_future(anext(following))
    await two_logs[0].append("run", NOTE, epoch=1)
    assert (await asyncio.wait_for(waiting, 10)).seq == 2
    await following.aclose()  # type: ignore[attr-defined]  # follow() says AsyncIterator, and is a generator


async def test_what_a_server_remembers_of_a_run_is_no_more_than_a_guess(two_logs: list[ContextLog]) -> None:
    """Each time the other server has written since: it is the database that says what holds."""
    await two_logs[0].create("run", {"n": 0})
    for writer in (0, 1, 0):
        await two_logs[writer].append("run", NOTE, epoch=1)
    with pytest.raises(LogConflict):
        await two_logs[1].append("run", NOTE, epoch=1, expected_seq=2)
    await two_logs[1].append("run", NOTE, epoch=1, head=NewHead(expected_version=1, value={"n": 1}))
    with pytest.raises(LogConflict):
        await two_logs[0].append("run", NOTE, epoch=1, head=NewHead(expected_version=1, value={"n": 2}))
    await two_logs[0].append("run", NOTE, epoch=1, head=NewHead(expected_version=2, value={"n": 2}))
    await two_logs[1].append("run", [], epoch=3)
    with pytest.raises(StaleEpoch):
        await two_logs[0].append("run", NOTE, epoch=2)
    await two_logs[1].fork("run", NOTE, epoch=3, parent=1, fork_seq=2)
    assert [(entry.branch, entry.seq) for entry in await two_logs[0].append("run", NOTE, epoch=3)] == [(2, 4)]
    assert (await two_logs[0].verify("run")).entries == 7
    assert (await two_logs[0].head("run")).value == {"n": 2}


async def test_a_run_that_is_remembered_is_no_longer_written_without_its_lease(two_logs: list[ContextLog]) -> None:
    ours, theirs = two_logs[0].leases, two_logs[1].leases
    assert ours is not None and theirs is not None
    await ours.begin("ours", {}, lasts_s=60.0)
    await theirs.begin("theirs", {}, lasts_s=60.0)
    await two_logs[0].create("run", {})
    await two_logs[0].append("run", NOTE, epoch=1)
    assert await theirs.remove("ours", None)
    with pytest.raises(LeaseLost, match="has lost its lease"):
        await two_logs[0].append("run", NOTE, epoch=1)
    assert await theirs.take("run", "ours")
    await ours.begin("ours-again", {}, lasts_s=60.0)
    for _ in range(2):
        with pytest.raises(LeaseLost, match="taken over"):
            await two_logs[0].append("run", NOTE, epoch=1)
    assert [entry.seq for entry in await two_logs[1].append("run", NOTE, epoch=1)] == [2]


@pytest.mark.parametrize("was_here", [False, True])
async def test_a_log_that_two_servers_take_up_at_once_is_whole_or_not_there(
    two_logs: list[ContextLog], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, was_here: bool
) -> None:
    monkeypatch.setattr(exporting, "BATCH_ROWS", 4)
    theirs = await sqlite.open(tmp_path / "log.db")
    await theirs.create("run", {})
    for _ in range(10):
        await theirs.append("run", NOTE, epoch=1)
    lines = [line async for line in theirs.export("run")]
    await theirs.close()

    async def fed(count: int, both_at: int = 0) -> AsyncIterator[bytes]:
        for number, line in enumerate(lines[:count]):
            if number == both_at > 0:
                with pytest.raises(ProtocolError, match="is cut"):
                    await two_logs[1].take_up(fed(5))
            yield line

    if was_here:
        await two_logs[0].take_up(fed(len(lines)))
        await two_logs[0].prune("run")
    with pytest.raises(Conflict, match="not all there"):
        await two_logs[0].take_up(fed(len(lines), 9))
    with pytest.raises(NotFound):
        await two_logs[0].read("run")
    assert (await two_logs[1].take_up(fed(len(lines)))).seq == 10
    assert (await two_logs[0].verify("run")).entries == 10


async def test_what_two_servers_add_to_a_joint_budget_is_one_sum(two_logs: list[ContextLog]) -> None:
    """Each to a part of its own, in whichever order they write to several."""
    day, month = ("owl*", "2026-11-27"), ("*", "2026-11")
    for number, log in enumerate(two_logs):
        assert log.leases is not None
        await log.leases.begin(f"server{number}", {}, lasts_s=60)
        await log.create(f"run{number}", {})

    async def write(number: int) -> None:
        for turn in range(20):
            usage, joint = {"input_tokens": 10, "output_tokens": 1}, (day, month) if turn % 2 else (month, day)
            end = NewEntry(kind="model.committed", payload={"usage": usage, "cost_usd": 0.1}, joint=joint)
            await two_logs[number].append(f"run{number}", [end], epoch=1)

    await asyncio.gather(*(write(number) for number in (0, 1) for _ in range(3)))
    for log in two_logs:
        for of in (day, month):
            spent = await log.spent_jointly(*of)
            assert (spent.calls, spent.tokens, spent.cost_usd, spent.unpriced) == (120, 1320, 12.0, 0)
