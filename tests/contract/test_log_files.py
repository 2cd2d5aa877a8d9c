"""A log leaves one database as a file and goes on in another; logs are pruned, and what nothing refers to is swept."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from perdure.context.log import ContextLog, NewEntry, NewHead
from perdure.context.moving import TakeBack, TakeUp
from perdure.errors import Conflict, NotFound, ProtocolError
from perdure.formats import logfile
from perdure.testing.postgres_fixtures import Opener

NOTE = [NewEntry(kind="note", payload={"text": "x" * 600})]


async def conversation(log: ContextLog, run: str = "run") -> None:
    """A run with two branches, shared lists, a source, and a key."""
    source = await log.put_blob(b"def main(ctx): ...\n\xff" * 30)
    await log.create(run, {"state": "completed", "source": source, "request": {"tags": {"a": "b"}}}, key=f"key {run}")
    messages: list[Any] = []
    for turn in range(30):
        messages.append({"role": "user", "content": f"{run} {turn} " + "who? " * 150})
        await log.append(run, [NewEntry(kind="model.intent", key=f"main/{turn}", payload=list(messages))], epoch=1)
    await log.fork(run, [NewEntry(kind="diverged"), *NOTE], parent=1, fork_seq=12, epoch=2)


async def exported(log: ContextLog, run: str = "run") -> list[bytes]:
    return [line async for line in log.export(run)]


async def fed(lines: list[bytes]) -> AsyncIterator[bytes]:
    for line in lines:
        yield line


@pytest.fixture
async def other(new_log: Callable[[], Opener]) -> AsyncIterator[ContextLog]:
    opened = await new_log()()
    yield opened
    await opened.close()


async def test_a_log_goes_on_in_another_database(log: ContextLog, other: ContextLog) -> None:
    await conversation(log)
    lines = await exported(log)
    assert logfile.verify(lines).entries == 32
    assert logfile.verify(lines)._asdict() == msgspec.structs.asdict(await log.verify("run"))
    head = await other.take_up(fed(lines), lambda value: {**value, "released": True})
    assert (head.run_id, head.key, head.epoch, head.branch, head.seq) == ("run", "key run", 2, 2, 14)
    assert (await other.head("run")).value == {**(await log.head("run")).value, "released": True}
    assert await other.verify("run") == await log.verify("run")
    for branch in (1, 2):
        assert await other.read("run", branch=branch) == await log.read("run", branch=branch)
    assert await other.get_blob(head.value["source"])
    assert [found.run_id for found in await other.heads(tags={"a": "b"})] == ["run"]
    assert (await exported(other))[1:] == lines[1:]
    assert (await other.append("run", NOTE, epoch=3))[0].seq == 15
    with pytest.raises(Conflict, match="a run run already"):
        await other.take_up(fed(lines))


async def test_an_empty_log_and_a_small_one(log: ContextLog, other: ContextLog) -> None:
    await log.create("run", {})
    await other.take_up(fed(await exported(log)))
    assert (await other.append("run", NOTE, epoch=1))[0].seq == 1


async def test_a_fork_is_taken_up_after_what_it_shares(log: ContextLog, other: ContextLog) -> None:
    await conversation(log)
    await log.branch_off("two", {}, NOTE, parent_run="run", parent=2, fork_seq=13, epoch=1)
    lines = await exported(log, "two")
    assert logfile.verify(lines).entries == 14
    assert logfile.verify(lines)._asdict() == msgspec.structs.asdict(await log.verify("two"))
    with pytest.raises(Conflict, match="is a fork") as refused:
        await other.take_up(fed(lines))
    assert "run run" in refused.value.hint
    await other.take_up(fed(await exported(log)))
    await other.take_up(fed(lines))
    assert await other.read("two") == await log.read("two")
    await other.verify("two")


async def test_damage_is_named_and_nothing_is_taken(log: ContextLog, other: ContextLog) -> None:
    await conversation(log)
    lines = await exported(log)

    def changed(number: int, **fields: Any) -> list[bytes]:
        found = json.loads(lines[number])
        return [*lines[:number], json.dumps({**found, **fields}).encode() + b"\n", *lines[number + 1 :]]

    last = len(lines) - 2
    of_entry = json.loads(lines[last])
    blob = next(number for number, line in enumerate(lines) if b'"text"' in line)
    damaged = {
        "payload": changed(last, payload={"text": "y"}),
        "time": changed(last, entry=[*of_entry["entry"][:4], 0.0, *of_entry["entry"][5:]]),
        "hash": changed(last, hash="00"),
        "bytes": changed(blob, text="owls"),
        "blob": [*lines[:blob], *lines[blob + 1 :]],
        "entry": [*lines[:last], lines[-1]],
        "cut": lines[:-1],
        "torn": [*lines[:-1], lines[-1][:10]],
        "twice": [*lines, lines[-1]],
        "order": [lines[0], lines[last], *lines[1:]],
        "foreign": [b'{"role": "user"}\n'],
        "text": [b"hello\n"],
        "newer": changed(0, perdure_log=99),
        "number": changed(0, epoch=1 << 63),
        "nothing": [],
    }
    for what, wrong in damaged.items():
        with pytest.raises(ProtocolError) as refused:
            logfile.verify(wrong)
        assert refused.value.hint, what
        if what != "twice":
            with pytest.raises(ProtocolError):
                await other.take_up(fed(wrong))
            assert await other.heads() == [], what
    await other.take_up(fed(lines))  # what the others had left is not in its way
    await other.verify("run")


async def test_a_pruned_log_is_gone_and_its_summary_stays(log: ContextLog) -> None:
    await conversation(log)
    await conversation(log, "two")
    await log.branch_off("fork", {}, NOTE, parent_run="two", parent=1, fork_seq=3, epoch=1)
    for kind in ("of:run", "of:run2"):
        await log.keep(kind, "a", 1)
    await log.prune("run", kind="of:run")
    assert (await log.kept("of:run"), len(await log.kept("of:run2"))) == ([], 1)
    head = await log.head("run")
    assert (head.pruned, head.seq, head.value["state"]) == (True, 14, "completed")
    for ask in (log.read("run"), log.verify("run"), exported(log)):
        with pytest.raises(NotFound, match="pruned"):
            await ask
    assert await log.find("run", 1, "main/1") == []
    with pytest.raises(Conflict, match="shared by its forks: fork"):
        await log.prune("two")
    with pytest.raises(NotFound):
        await log.prune("nobody")
    await log.verify("fork")


async def test_what_was_pruned_is_taken_back(log: ContextLog) -> None:
    await conversation(log)
    lines, before = await exported(log), await log.head("run")
    entries = [await log.read("run", branch=branch) for branch in (1, 2)]
    with pytest.raises(Conflict, match="a run run already"):
        await log.take_up(fed(lines))
    await log.prune("run")
    for _ in range(3):
        await log.sweep()
    tagged = [NewEntry(kind="tagged", payload={"tags": {"b": "x" * 600}})]
    head = NewHead(expected_version=before.version, value={**before.value, "request": {"tags": {"b": "c"}}})
    (later,) = await log.append("run", tagged, epoch=None, head=head)  # its tags may be changed still
    seen = []

    async def watched() -> AsyncIterator[bytes]:
        for line in lines:
            yield line
            seen.append((await log.head("run")).pruned and not await log.read("run", branch=1))

    taken = await log.take_up(watched(), lambda value: {**value, "taken_up": 7})
    assert seen and all(seen)  # nothing is seen of it before its last line
    assert (taken.pruned, taken.seq, taken.key) == (False, before.seq + 1, before.key)
    assert taken.value == {**head.value, "taken_up": 7}  # the summary is the one that stayed
    assert [await log.read("run", branch=branch) for branch in (1, 2)] == [entries[0], [*entries[1], later]]
    assert (await log.verify("run")).entries == 33
    assert await log.get_blob(taken.value["source"])
    with pytest.raises(Conflict, match="a run run already"):
        await log.take_up(fed(lines))
    newer = await exported(log)
    await log.prune("run")
    with pytest.raises(Conflict, match="ends at entry 14 of branch 2, and what was pruned at entry 15") as refused:
        await log.take_up(fed(lines))
    assert "exported last" in refused.value.hint and "PERDURE_HOME" in refused.value.hint
    await log.take_up(fed(newer))
    assert await exported(log) == [newer[0].replace(b'"taken_up":7,', b""), *newer[1:]]


async def test_one_log_of_a_run_is_taken_up_at_a_time(log: ContextLog, other: ContextLog) -> None:
    await conversation(log)
    lines = await exported(log)
    for _ in ("of another home", "pruned"):
        tries = await asyncio.gather(*(other.take_up(fed(lines)) for _ in range(2)), return_exceptions=True)
        told = [str(error) for error in tries if isinstance(error, Conflict)]
        assert len(told) == 1 and "is being taken up just now" in told[0]
        assert (await other.verify("run")).entries == 32
        await other.prune("run")


async def test_only_what_was_pruned_is_taken_back(log: ContextLog, other: ContextLog) -> None:
    await conversation(log)
    await log.branch_off("fork", {}, NOTE, parent_run="run", parent=2, fork_seq=13, epoch=1)
    lines, of_fork = await exported(log), await exported(log, "fork")
    await conversation(other)  # the same, at another time
    theirs = await exported(other)
    await other.fork("run", NOTE, parent=1, fork_seq=3, epoch=2)
    longer = await exported(other)
    await log.prune("fork")
    await log.prune("run")
    for wrong, said in ((theirs, "branch 1 had another entry 30"), (longer, "had 2 branches")):
        with pytest.raises(Conflict, match=said) as refused:
            await log.take_up(fed(wrong))
        assert "exported last" in refused.value.hint
    for cut in (lines[:-1], lines[:40]):
        with pytest.raises(ProtocolError, match="is cut"):
            await log.take_up(fed(cut))
    for ask in (log.read("run"), log.verify("run"), exported(log)):
        with pytest.raises(NotFound, match="pruned"):
            await ask
    with pytest.raises(Conflict, match="run fork is a fork: entry 12 of run run is not here"):
        await log.take_up(fed(of_fork))
    assert (await log.head("run")).pruned and (await log.head("fork")).pruned
    await log.take_up(fed(lines))
    await log.take_up(fed(of_fork))
    assert (await exported(log), await exported(log, "fork")) == (lines, of_fork)


async def test_what_was_written_since_stays_when_another_log_is_refused(log: ContextLog, other: ContextLog) -> None:
    await conversation(log)
    lines = await exported(log)
    await other.take_up(fed(lines))
    await log.prune("run")
    (later,) = await log.append("run", NOTE, epoch=None)
    await other.append("run", NOTE, epoch=None)
    theirs = await exported(other)
    for wrong in (theirs, theirs[:-1]):
        with pytest.raises((Conflict, ProtocolError)):
            await log.take_up(fed(wrong))
    await log.take_up(fed(lines))
    assert (await log.read("run"))[-1] == later
    assert (await log.verify("run")).entries == 33


async def test_a_fork_is_not_taken_up_while_what_it_shares_is_pruned(log: ContextLog, other: ContextLog) -> None:
    await conversation(log)
    await log.branch_off("fork", {}, NOTE, parent_run="run", parent=2, fork_seq=13, epoch=1)
    of_run, of_fork = await exported(log), await exported(log, "fork")
    # mypy knows no attributes of what stands for either database: the moment is between two of its transactions.
    submit = other.submit  # type: ignore[attr-defined]

    async def pruned_before(job: Any) -> Any:
        if isinstance(job, TakeUp | TakeBack):
            await other.prune("run")
        return await submit(job)

    await other.take_up(fed(of_run))
    for _ in ("of another home", "pruned"):
        other.submit = pruned_before  # type: ignore[attr-defined]
        with pytest.raises(Conflict, match="is a fork: entry 13 of run run is not here"):
            await other.take_up(fed(of_fork))
        other.submit = submit  # type: ignore[attr-defined]
        assert await other.heads(pruned=False) == []
        await other.take_up(fed(of_run))
        await other.take_up(fed(of_fork))
        await other.prune("fork")


async def test_what_forks_of_pruned_forks_share_stays(log: ContextLog) -> None:
    await conversation(log)
    for name, parent, seq in (("fork", "run", 3), ("other", "fork", 2)):  # the second shares none of the first's own
        await log.branch_off(name, {}, NOTE, parent_run=parent, parent=1, fork_seq=seq, epoch=1)
    with pytest.raises(Conflict, match="shared by its forks: fork, other"):
        await log.prune("run")
    await log.prune("other")
    await log.prune("fork")
    await log.branch_off("late", {}, NOTE, parent_run="fork", parent=1, fork_seq=2, epoch=1)
    with pytest.raises(Conflict, match="shared by its forks: late"):
        await log.prune("run")
    await log.verify("late")
    await log.prune("late")
    await log.prune("run")


async def test_what_nothing_refers_to_is_swept(log: ContextLog, tmp_path: Path) -> None:
    await conversation(log)
    await conversation(log, "two")
    before = [await log.read("two", branch=branch) for branch in (1, 2)]
    source = (await log.head("run")).value["source"]  # of both runs
    lone = await log.put_blob(b"nobody's " * 100)
    await log.keep("queue", "a", {"of": await log.put_blob(b"a queue's " * 100)})
    await log.prune("run")
    swept = [await log.sweep() for _ in range(3)]
    assert [found.blobs > 50 for found in swept] == [False, True, False]
    assert swept[0].next_blobs == swept[1].blobs
    assert swept[1].stored_bytes > 5000
    with pytest.raises(NotFound):
        await log.get_blob(lone)
    await log.get_blob(source)
    await log.get_blob((await log.kept("queue"))[0].value["of"])
    assert [await log.read("two", branch=branch) for branch in (1, 2)] == before
    await log.verify("two")


async def test_what_is_referred_to_anew_is_not_swept(log: ContextLog) -> None:
    digest = await log.put_blob(b"x" * 600)
    assert (await log.sweep()).blobs == 0
    await log.put_blob(b"x" * 600)
    assert (await log.sweep()).blobs == 0
    await log.create("run", {})
    await log.append("run", [NewEntry(kind="note", payload="x" * 600)], epoch=1)
    for _ in range(3):
        assert (await log.sweep()).blobs == 0
    assert await log.get_blob(digest)
