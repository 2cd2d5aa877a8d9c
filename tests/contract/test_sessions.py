"""Sessions of a context log, on each database."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perdure.context import postgres as postgres_log
from perdure.context.log import ContextLog
from perdure.context.sessions import NewItem
from perdure.errors import Conflict, InvalidValue, LogConflict, NotFound
from perdure.testing.postgres import PostgresServer
from perdure.testing.postgres_fixtures import Opener


def item(payload: Any = None, **fields: Any) -> NewItem:
    return NewItem(kind="note", payload=payload, **fields)


async def payloads(log: ContextLog, name: str) -> list[Any]:
    return [entry.payload for entry in await log.sessions.read(name)]


async def test_a_session_is_a_log_beside_the_runs(log: ContextLog) -> None:
    await log.create("run", {"state": "queued"})
    made, is_new = await log.sessions.make("a/b c", {"app": "x"}, {"n": 1})
    assert is_new and (made.seq, made.version, made.value) == (0, 1, {"n": 1})
    again, is_new = await log.sessions.make("a/b c", {"app": "other"})
    assert not is_new and again == made
    session, entries = await log.sessions.append("a/b c", [item("x" * 1000), item([1])], value={"n": 2})
    assert ([entry.seq for entry in entries], session.seq, session.version) == ([1, 2], 2, 2)
    assert await log.sessions.get("a/b c") == session
    assert await payloads(log, "a/b c") == ["x" * 1000, [1]]
    assert [entry.payload for entry in await log.sessions.newest("a/b c", limit=1)] == [[1]]
    assert [found.name for found in await log.sessions.all({"app": "x"}, None, 10)] == ["a/b c"]
    assert await log.sessions.all({"app": "other"}, None, 10) == []
    assert [head.run_id for head in await log.heads()] == ["run"]
    assert await log.states() == {"queued": 1}
    assert (await log.verify(entries[0].run_id)).entries == 2


async def test_who_expects_something_else_is_told(log: ContextLog) -> None:
    with pytest.raises(NotFound, match="no such session: 'a'"):
        await log.sessions.append("a", [item()])
    await log.sessions.append("a", [item(1)], tags={}, expected_seq=0)
    with pytest.raises(LogConflict, match="session 'a': it is at entry 1"):
        await log.sessions.append("a", [item(2)], expected_seq=0)
    await log.sessions.append("a", [], value="x", expected_version=1)
    with pytest.raises(LogConflict, match=r"its value was changed meanwhile \(version 2\)"):
        await log.sessions.append("a", [item(2)], value="y", expected_version=1)
    assert await payloads(log, "a") == [1]
    for name in ("", "a\0b", "\ud800", "ä" * 600):
        with pytest.raises(InvalidValue, match="not the name of a session"):
            await log.sessions.make(name)
    with pytest.raises(InvalidValue, match="the key of an entry"):
        await log.sessions.append("a", [item(key="k" * 1025)])


async def test_of_many_writers_each_entry_is_there_once(log: ContextLog) -> None:
    writers = [
        log.sessions.append("a", [item(n, key=f"k{n % 5}", once=True), item("other")], tags={}) for n in range(30)
    ]
    await asyncio.gather(*writers)
    found = await payloads(log, "a")
    assert sorted(n % 5 for n in found if n != "other") == [0, 1, 2, 3, 4] and found.count("other") == 30
    keys = ["k1", "k3", "nothing"]
    both = await log.sessions.find("a", keys)
    assert both == [entry for entry in await log.sessions.read("a") if entry.key in keys] and len(both) == 2
    twice, _ = await log.sessions.append("a", [item(key="new", once=True), item(key="new", once=True)])
    assert twice.seq == len(found) + 1


async def test_a_value_that_many_change_is_changed_once_each(log: ContextLog) -> None:
    await log.sessions.make("a", value=0)

    async def add() -> None:
        while True:
            session = await log.sessions.get("a")
            try:
                await log.sessions.append("a", [], value=session.value + 1, expected_version=session.version)
                return
            except LogConflict:
                pass

    await asyncio.gather(*(add() for _ in range(10)))
    assert (await log.sessions.get("a")).value == 10


async def test_a_fork_shares_what_was_until_its_own_first_entry(log: ContextLog) -> None:
    await log.sessions.append("a", [item(1), item(2), item(3)], tags={"app": "x"}, value="v")
    forked = await log.sessions.fork("a", "b", at=2)
    assert (forked.seq, forked.tags, forked.value, forked.origin) == (3, {"app": "x"}, "v", {"session": "a", "seq": 2})
    await log.sessions.append("a", [item("a")])
    await log.sessions.append("b", [item("b", key="k")])
    assert await payloads(log, "b") == [1, 2, {"session": "a", "seq": 2}, "b"]
    newest = await log.sessions.newest("b", limit=3)
    assert [entry.payload for entry in newest] == ["b", {"session": "a", "seq": 2}, 2]
    assert [entry.payload for entry in await log.sessions.newest("b", before=3)] == [2, 1]
    assert [entry.payload for entry in await log.sessions.newest("b", key="k")] == ["b"]
    with pytest.raises(Conflict, match="there is a session 'b' already"):
        await log.sessions.fork("a", "b")
    with pytest.raises(InvalidValue, match="no fork at 9"):
        await log.sessions.fork("a", "c", at=9)
    with pytest.raises(NotFound):
        await log.sessions.fork("nothing", "c")


async def test_entries_are_found_by_their_keys_wherever_they_lie(log: ContextLog) -> None:
    made = random.Random(3)

    def some(count: int) -> list[NewItem]:
        keys, kinds = ("a", "b", "c", None), ("note", "other")
        return [NewItem(kind=made.choice(kinds), payload=n, key=made.choice(keys)) for n in range(count)]

    for count in (1, 31, 32, 33, 60):
        await log.sessions.append("one", some(count), tags={})
    await log.sessions.fork("one", "two", at=100)
    await log.sessions.append("two", some(40))
    for name in ("one", "two"):
        entries = await log.sessions.read(name)
        assert await log.sessions.find(name, ["a", "c", "d"]) == [e for e in entries if e.key in ("a", "c")]
        for key in ("a", "b", "d"):
            for kind in ("note", None):
                last = [e for e in reversed(entries) if e.key == key and kind in (e.kind, None)]
                assert await log.sessions.newest(name, key=key, kind=kind) == last
                assert await log.sessions.newest(name, key=key, kind=kind, limit=2) == last[:2]
                older = await log.sessions.newest(name, key=key, kind=kind, limit=3, before=50)
                assert older == [e for e in last if e.seq < 50][:3]


async def test_a_deleted_session_is_gone_but_for_what_its_forks_share(log: ContextLog) -> None:
    await log.sessions.append("a", [item("a" * 1000)], tags={})
    first = (await log.sessions.read("a"))[0].run_id
    await log.sessions.fork("a", "b")
    await log.sessions.fork("b", "c")
    second = (await log.sessions.read("b"))[-1].run_id
    await log.sessions.delete("a")
    await log.sessions.delete("b")
    with pytest.raises(NotFound):
        await log.sessions.read("a")
    assert [session.name for session in await log.sessions.all({}, None, 10)] == ["c"]
    assert (await payloads(log, "c"))[0] == "a" * 1000
    await log.sessions.append("a", [item("new")], tags={})
    assert await payloads(log, "a") == ["new"]
    await log.sessions.delete("c")
    for run_id in (first, second):
        assert (await log.head(run_id)).pruned
    assert sum([(await log.sweep()).blobs for _ in range(3)]) == 1
    assert await log.heads() == []
    with pytest.raises(NotFound):
        await log.sessions.delete("c")


async def test_only_some_entries_stay(log: ContextLog) -> None:
    await log.sessions.append("a", [item(n, key=str(n)) for n in range(5)], tags={"t": "x"}, value="v")
    with pytest.raises(LogConflict):
        await log.sessions.keep("a", [2], expected_seq=4)
    with pytest.raises(InvalidValue, match="has entries 1 to 5"):
        await log.sessions.keep("a", [6], expected_seq=5)
    kept = await log.sessions.keep("a", [5, 2], expected_seq=5)
    assert (kept.seq, kept.tags, kept.value) == (2, {"t": "x"}, "v")
    assert [(entry.seq, entry.key, entry.payload) for entry in await log.sessions.read("a")] == [
        (1, "1", 1),
        (2, "4", 4),
    ]
    await log.sessions.append("a", [item("more")])
    assert (await log.sessions.keep("a", [], expected_seq=3, value=None)).seq == 0
    assert await payloads(log, "a") == []


async def test_who_writes_while_it_is_deleted_makes_a_new_one_or_is_told(log: ContextLog) -> None:
    async def write(n: int) -> Any:
        return await log.sessions.append("a", [item(n)], tags={})

    async def delete() -> None:
        try:
            await log.sessions.delete("a")
        except NotFound:
            pass

    for _ in range(5):
        await asyncio.gather(write(1), delete(), write(2), delete(), write(3))
    seq = (await log.sessions.append("a", [item("last")], tags={}))[0].seq
    assert len(await payloads(log, "a")) == seq


async def test_a_log_that_was_deleted_last_is_still_known_of(new_log: Callable[[], Opener], tmp_path: Path) -> None:
    opener = new_log()
    log = await opener()
    await log.remember(tmp_path / "mark")
    await log.sessions.append("a", [item()], tags={})
    await log.sessions.delete("a")
    await log.close()
    log = await opener()
    await log.remember(tmp_path / "mark")
    await log.close()


async def test_servers_write_to_the_same_session(postgres: PostgresServer) -> None:
    logs = await asyncio.gather(*(postgres_log.open(postgres.url, schema="sessions_shared") for _ in range(2)))
    for number, log in enumerate(logs):
        assert log.leases is not None
        await log.leases.begin(f"server{number}", {}, lasts_s=60)
    await asyncio.gather(*(logs[n % 2].sessions.append("a", [item(n)], tags={}) for n in range(20)))
    assert sorted(await payloads(logs[1], "a")) == list(range(20))
    for log in logs:
        await log.close()
