"""Branches and forks of a context log, on each database: what they share, and what is read, counted and listed along
them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from perdure.context.log import ContextLog, NewEntry
from perdure.errors import Conflict, InvalidValue, NotFound, StaleEpoch
from perdure.testing.postgres_fixtures import Opener

TURN = [NewEntry(kind=f"model.{what}", key="main/1") for what in ("intent", "started", "committed")]


async def test_followers_see_every_entry_once_and_go_over_to_a_fork(log: ContextLog) -> None:
    await log.create("run", {})
    await log.append("run", [NewEntry(kind="note", payload=i) for i in range(3)], epoch=1)
    seen: list[tuple[int, int]] = []
    enough = asyncio.Event()

    async def follow() -> None:
        async for entry in log.follow("run"):
            seen.append((entry.branch, entry.seq))
            if (entry.branch, entry.seq) in ((1, 5), (2, 4)):
                enough.set()

    task = asyncio.create_task(follow())
    await log.append("run", [NewEntry(kind="note"), NewEntry(kind="note")], epoch=1)
    await asyncio.wait_for(enough.wait(), 10)
    enough.clear()
    await log.fork("run", [NewEntry(kind="diverged"), NewEntry(kind="note")], parent=1, fork_seq=2, epoch=1)
    await asyncio.wait_for(enough.wait(), 10)
    task.cancel()
    assert seen == [(1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (2, 3), (2, 4)]


async def test_a_run_branches_off_another_one_and_shares_its_entries(log: ContextLog) -> None:
    await log.create("one", {})
    said = [NewEntry(kind="note", payload=["long " * 300, i], key=f"main/{i}") for i in range(6)]
    await log.append("one", said, epoch=3)
    await log.fork("one", [NewEntry(kind="diverged")], parent=1, fork_seq=4, epoch=4)
    forked = [NewEntry(kind="forked", key="main/2")]
    for name, of, parent, at in (("two", "one", 1, 5), ("three", "one", 2, 3), ("four", "two", 1, 6)):
        head = await log.branch_off(name, {"n": name}, forked, parent_run=of, parent=parent, fork_seq=at, epoch=7)
        assert (head.run_id, head.epoch, head.branch, head.seq, head.value) == (name, 7, 1, at + 1, {"n": name})
    await log.append("one", [NewEntry(kind="note", key="main/2")], epoch=None, branch=1)  # not the forks' any more
    await log.append("four", [NewEntry(kind="emit", key="x/1")], epoch=8)

    found = await log.read("four")
    assert [(e.run_id, e.seq, e.kind) for e in found] == [
        *(("one", seq, "note") for seq in range(1, 6)),
        ("two", 6, "forked"),
        ("four", 7, "forked"),
        ("four", 8, "emit"),
    ]
    assert found[:5] == (await log.read("one", branch=1))[:5]
    paged = [e for after in range(8) for e in await log.read("four", after=after, limit=1)]
    assert paged == found
    assert [e.seq for e in await log.read("four", kind="forked")] == [6, 7]
    assert [(e.run_id, e.seq) for e in await log.find("four", 1, "main/2")] == [("one", 3), ("two", 6), ("four", 7)]
    assert [(e.run_id, e.seq) for e in await log.find("three", 1, "main/4")] == []
    assert [(s.run_id, s.branch, s.fork_seq, s.upto) for s in await log.lineage("four")] == [
        ("four", 1, 6, 8),
        ("two", 1, 5, 6),
        ("one", 1, 0, 5),
    ]
    assert [(s.run_id, s.branch, s.upto) for s in await log.lineage("three")] == [
        ("three", 1, 4),
        ("one", 2, 3),
        ("one", 1, 3),
    ]
    (root,) = await log.branches("four")
    assert (root.parent_run, root.parent, root.fork_seq, root.seq) == ("two", 1, 6, 8)

    await log.fork("four", [NewEntry(kind="diverged")], parent=1, fork_seq=2, epoch=8)  # among what it shares
    assert [(e.run_id, e.branch) for e in await log.read("four")] == [("one", 1), ("one", 1), ("four", 2)]
    await log.fork("four", [NewEntry(kind="diverged")], parent=2, fork_seq=0, epoch=8)
    for name, entries in (("one", 8), ("two", 6), ("three", 4), ("four", 10)):
        assert (await log.verify(name)).entries == entries
    seen = []
    async for entry in log.follow("two"):
        seen.append(entry.seq)
        if entry.kind == "forked":
            break
    assert seen == [1, 2, 3, 4, 5, 6]


async def test_a_run_branches_off_only_what_is_there(log: ContextLog) -> None:
    await log.create("one", {})
    await log.append("one", [NewEntry(kind="note")], epoch=1)

    async def branch_off(name: str = "two", of: str = "one", parent: int = 1, at: int = 1, new: int = 1) -> None:
        entries = [NewEntry(kind="forked")] * new
        await log.branch_off(name, {}, entries, parent_run=of, parent=parent, fork_seq=at, epoch=1)

    for wrong, error in (
        ({"name": "one"}, Conflict),
        ({"of": "nobody"}, NotFound),
        ({"parent": 2}, NotFound),
        ({"at": 2}, InvalidValue),
        ({"at": -1}, InvalidValue),
        ({"new": 0}, InvalidValue),
    ):
        with pytest.raises(error):
            await branch_off(**wrong)  # type: ignore[arg-type]  # each is of its parameter's type
    assert [head.run_id for head in await log.heads()] == ["one"]


async def test_a_head_says_how_many_turns_its_run_has_over_all_its_branches(
    log: ContextLog, new_log: Callable[[], Opener]
) -> None:
    async def turns(name: str, of: ContextLog = log) -> tuple[int, int]:
        (listed,) = await of.heads(prefix=name)
        assert await of.head(name) == listed
        return listed.turns_asked, listed.turns_replayed

    for name in ("one", "two"):
        await log.create(name, {})
    written = [log.append(name, TURN, epoch=1) for name in ("one", "two", "one", "one")]  # perhaps one transaction
    await asyncio.gather(*written)
    assert await turns("one") == (3, 0) and await turns("two") == (1, 0)
    await log.append("one", [NewEntry(kind="model.replayed", key="main/1")] * 2, epoch=2)
    await log.fork("one", [NewEntry(kind="diverged"), *TURN], parent=1, fork_seq=3, epoch=2)
    assert await turns("one") == (4, 2)
    off: dict[str, Any] = {"parent_run": "one", "parent": 2, "fork_seq": 4, "epoch": 2}
    await log.branch_off("off", {}, [NewEntry(kind="forked")], **off)
    assert await turns("off") == (0, 0)  # it asked nobody for what it shares
    with pytest.raises(StaleEpoch):
        await log.append("one", TURN, epoch=1)
    await log.append("off", TURN, epoch=2)
    assert await turns("one") == (4, 2) and await turns("off") == (1, 0)

    other = await new_log()()
    for name in ("one", "off"):
        assert await other.take_up(log.export(name)) == await other.head(name)
    assert await turns("one", other) == (4, 2) and await turns("off", other) == (1, 0)
    await other.close()
    await log.prune("off")
    assert await turns("off") == (1, 0)
    for pruned, there in ((True, ["off"]), (False, ["one", "two"])):
        assert [head.run_id for head in await log.heads(pruned=pruned)] == there


async def test_what_a_run_waited_for_is_read_along_its_branch(log: ContextLog) -> None:
    wait = NewEntry(kind="wait.started", key="main/1")
    await log.create("one", {})
    await log.append("one", [NewEntry(kind="note"), wait, NewEntry(kind="note"), wait], epoch=1)
    await log.fork("one", [NewEntry(kind="diverged"), wait], parent=1, fork_seq=2, epoch=1)
    off: dict[str, Any] = {"parent_run": "one", "parent": 2, "fork_seq": 3, "epoch": 1}
    await log.branch_off("off", {}, [NewEntry(kind="forked"), wait, wait], **off)
    for name, branch, seqs in (("one", None, [2, 4]), ("one", 1, [2, 4]), ("off", None, [2, 5, 6])):
        found = await log.read(name, branch=branch, kind="wait.started")
        assert [entry.seq for entry in found] == seqs
        assert found == [e for e in await log.read(name, branch=branch) if e.kind == "wait.started"]
        assert await log.read(name, branch=branch, kind="wait.started", after=seqs[0], limit=1) == [found[1]]
        assert await log.read(name, branch=branch, kind="wait.started", key="main/1") == found


async def test_children_and_forks_are_listed_below_their_runs(log: ContextLog) -> None:
    for name, parent in (("root", None), ("kid", "root"), ("grandkid", "kid"), ("other", None)):
        await log.create(name, {"state": "queued", "parent": parent})
        await log.append(name, [NewEntry(kind="note")], epoch=1)
    for name, of in (("fork", "root"), ("deeper", "fork"), ("beside", "kid")):
        forked = [NewEntry(kind="forked")]
        await log.branch_off(name, {}, forked, parent_run=of, parent=1, fork_seq=1, epoch=1)

    async def below(*names: str) -> list[str]:
        return [head.run_id for head in await log.heads(below=names)]

    assert await below("root") == ["kid", "fork"]
    assert await below("kid", "fork", "nobody") == ["grandkid", "deeper", "beside"]
    assert await below("other", "beside") == []
    assert [head.run_id for head in await log.heads(below=["root"], states=["queued"])] == ["kid"]
    assert [head.run_id for head in await log.heads(forks_of=["root", "kid", "nobody"])] == ["fork", "beside"]
    assert await log.heads(forks_of=["beside"]) == await log.heads(forks_of=[]) == []
