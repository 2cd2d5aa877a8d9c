"""What every context log holds, on each database, checked against a plain model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from perdure.context.log import Beside, ContextLog, NewEntry, NewHead, digest_of
from perdure.errors import Conflict, InvalidValue, LogConflict, NotFound, PerdureError, StaleEpoch, TooLarge
from perdure.model import Spent
from perdure.testing.postgres_fixtures import Opener

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20) | st.just("long " * 300),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["a", "b", "$blob", "$list", "$value", "$other"]), inner, max_size=3)
    ),
    max_leaves=8,
)
entries = st.builds(
    NewEntry, kind=st.sampled_from(["note", "emit"]), payload=json_values, key=st.sampled_from([None, "main/1", "x/2"])
)
operations = st.one_of(
    st.tuples(
        st.just("append"),
        st.lists(entries, max_size=3),
        st.sampled_from([None, 0, 1]),  # epoch: None, stale by one, new by one … relative to the current one
        st.sampled_from([None, 0, 1]),  # expected_seq: not given, right, wrong by one
    ),
    st.tuples(st.just("fork"), st.integers(0, 6), st.integers(0, 3)),
)


class Model:
    """A run as lists: one whole list of entries per branch."""

    def __init__(self) -> None:
        self.epoch, self.branch = 0, 1
        self.branches: dict[int, list[NewEntry]] = {1: []}

    @property
    def tip(self) -> list[NewEntry]:
        return self.branches[self.branch]

    def append(self, new: list[NewEntry], epoch: int | None, expected: int | None) -> type[PerdureError] | None:
        if epoch is not None and epoch < self.epoch:
            return StaleEpoch
        if expected is not None and expected != len(self.tip):
            return LogConflict
        self.epoch = max(self.epoch, epoch or 0)
        self.tip.extend(new)
        return None

    def fork(self, parent: int, at: int) -> type[PerdureError] | None:
        if parent not in self.branches:
            return NotFound
        if at > len(self.branches[parent]):
            return InvalidValue
        self.branch = len(self.branches) + 1
        self.branches[self.branch] = [*self.branches[parent][:at], NewEntry(kind="forked")]
        return None


@given(st.lists(operations, max_size=12))
@settings(
    max_examples=settings().max_examples // 2,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_log_behaves_like_lists(new_log: Callable[[], Opener], todo: list[Any]) -> None:
    async def check() -> None:
        log, model = await new_log()(), Model()
        try:
            await log.create("run", {"state": "queued"})
            for operation in todo:
                await step(log, model, operation)
            await same(log, model)
        finally:
            await log.close()

    asyncio.run(check())


async def step(log: ContextLog, model: Model, operation: Any) -> None:
    try:
        if operation[0] == "append":
            _, new, epoch, expected = operation
            epoch = None if epoch is None else max(0, model.epoch + (1 if epoch else -1))
            expected = None if expected is None else len(model.tip) + expected
            wanted = model.append(new, epoch, expected)
            await log.append("run", new, epoch=epoch, expected_seq=expected)
        else:
            _, at, parent = operation
            wanted = model.fork(parent, at)
            await log.fork("run", [NewEntry(kind="forked")], parent=parent, fork_seq=at, epoch=None)
    except PerdureError as error:
        assert wanted is type(error), error
    else:
        assert wanted is None


async def same(log: ContextLog, model: Model) -> None:
    head = await log.head("run")
    assert (head.epoch, head.branch, head.seq) == (model.epoch, model.branch, len(model.tip))
    for branch, wanted in model.branches.items():
        found = await log.read("run", branch=branch)
        assert [(e.kind, e.key, e.payload) for e in found] == [(w.kind, w.key, w.payload) for w in wanted]
        assert [e.seq for e in found] == list(range(1, len(wanted) + 1))
        paged = [e for after in range(len(wanted)) for e in await log.read("run", branch=branch, after=after, limit=1)]
        assert paged == found
        for key in ("main/1", "x/2"):
            assert await log.find("run", branch, key) == [e for e in found if e.key == key]
    verified = await log.verify("run")
    assert verified.branches == len(model.branches)
    assert verified.entries == sum(1 for b in await log.branches("run") for _ in range(b.fork_seq, b.seq))


async def test_an_idempotency_key_gives_the_older_run(log: ContextLog) -> None:
    assert (await log.create("one", {"n": 1}, key="owls")).run_id == "one"
    again = await log.create("two", {"n": 2}, key="owls")
    assert (again.run_id, again.value) == ("one", {"n": 1})
    assert [head.run_id for head in await log.heads()] == ["one"]
    assert await log.head_of_key("owls") == again and await log.head_of_key("owl") is None
    with pytest.raises(Conflict):
        await log.create("one", {})


async def test_a_key_is_given_up_to_the_run_that_replaces_its_own(log: ContextLog) -> None:
    await log.create("one", {}, key="k")
    assert (await log.create("two", {}, key="k", replacing="another")).run_id == "one"
    assert (await log.create("two", {}, key="k", replacing="one")).run_id == "two"
    assert (await log.create("three", {}, key="k")).run_id == "two"
    assert (await log.head("one")).key is None


async def test_what_is_kept_beside_the_runs_is_replaced_by_compare_and_set(log: ContextLog) -> None:
    made = await log.keep("queue", "b", {"limit": 1}, expected_version=0)
    assert made.version == 1
    with pytest.raises(Conflict, match="queue b already"):
        await log.keep("queue", "b", {}, expected_version=0)
    with pytest.raises(NotFound, match="no such queue: a"):
        await log.keep("queue", "a", {}, expected_version=3)
    tries = [log.keep("queue", "b", {"limit": n}, expected_version=1) for n in range(5)]
    done = await asyncio.gather(*tries, return_exceptions=True)
    assert [type(result).__name__ for result in done].count("LogConflict") == 4
    await log.keep("queue", "a", [1])
    await log.keep("schedule", "a", [2])
    assert [(kept.name, kept.version) for kept in await log.kept("queue")] == [("a", 1), ("b", 2)]
    assert [kept.value for kept in await log.kept("schedule", "a")] == [[2]]
    assert await log.drop("queue", "a") and not await log.drop("queue", "a")
    assert await log.kept("queue", "a") == []


async def test_what_is_kept_changes_with_an_append_or_nothing_does(log: ContextLog) -> None:
    await log.create("run", {})
    line = Beside(kind="line", name="q", value=[1], expected_version=0)
    place = Beside(kind="place:q", name="run", value={})
    await log.append("run", [NewEntry(kind="note")], epoch=None, beside=[line, place])
    for refused, error in ((line, Conflict), (replace(line, expected_version=7), LogConflict)):
        with pytest.raises(error):
            await log.append("run", [NewEntry(kind="note")], epoch=None, beside=[replace(place, name="other"), refused])
    assert (await log.head("run")).seq == 1
    assert [kept.name for kept in await log.kept("place:q")] == ["run"]
    many = [
        log.append("run", [NewEntry(kind="note")], epoch=None, beside=[replace(line, expected_version=version)])
        for version in (1, 2, 3)
    ]
    await asyncio.gather(*many)
    gone = replace(place, value=None)
    await log.fork("run", [NewEntry(kind="note")], parent=1, fork_seq=2, epoch=None, beside=[gone])
    await log.append("run", [NewEntry(kind="note")], epoch=None, beside=[gone])  # it is not there
    assert await log.kept("place:q") == []
    assert [kept.version for kept in await log.kept("line")] == [4]


async def test_what_does_not_exist_is_not_found(log: ContextLog) -> None:
    for ask in (
        log.head("nobody"),
        log.branches("nobody"),
        log.read("nobody"),
        log.append("nobody", [NewEntry(kind="note")], epoch=None),
    ):
        with pytest.raises(NotFound, match="nobody"):
            await ask
    await log.create("run", {})
    with pytest.raises(NotFound, match="branch 7"):
        await log.append("run", [NewEntry(kind="note")], epoch=None, branch=7)
    for digest in ("sha256:" + "0" * 64, "sha256:xyz", "../../etc/passwd"):
        with pytest.raises(NotFound):
            await log.get_blob(digest)


async def test_a_head_is_replaced_once(log: ContextLog) -> None:
    await log.create("run", {"n": 0})
    version = (await log.head("run")).version

    async def write(n: int) -> None:
        head = NewHead(expected_version=version, value={"n": n})
        await log.append("run", [NewEntry(kind="note", payload=n)], epoch=1, head=head)

    results = await asyncio.gather(*(write(n) for n in range(8)), return_exceptions=True)
    lost = [result for result in results if isinstance(result, LogConflict)]
    assert len(lost) == 7
    head = await log.head("run")
    assert head.value == {"n": (await log.read("run"))[0].payload}
    assert head.seq == 1  # the entries of those who lost are not there either


async def test_concurrent_appends_are_dense_and_none_is_lost(log: ContextLog) -> None:
    for run in range(4):
        await log.create(f"run{run}", {})

    async def writer(run: int, number: int) -> list[int]:
        written = []
        for i in range(20):
            written += [
                e.seq for e in await log.append(f"run{run}", [NewEntry(kind="note", payload=[number, i])], epoch=1)
            ]
        return written

    seqs = await asyncio.gather(*(writer(run, number) for run in range(4) for number in range(4)))
    for run in range(4):
        mine = [seq for written in seqs[run * 4 : run * 4 + 4] for seq in written]
        assert sorted(mine) == list(range(1, 81))
        assert (await log.verify(f"run{run}")).entries == 80


async def test_a_conversation_that_is_sent_again_costs_what_is_new(log: ContextLog, tmp_path: Path) -> None:
    await log.create("run", {})
    messages: list[dict[str, str]] = []
    unique = 0
    for turn in range(60):
        messages.append({"role": "tool", "content": f"{turn:06}" + hex(hash(str(turn)) ** 256)[2:2000]})
        unique += len(messages[-1]["content"])
        await log.append("run", [NewEntry(kind="model.intent", payload={"messages": list(messages)})], epoch=1)
    assert (await log.read("run", after=59))[0].payload == {"messages": messages}
    compact = await log.read("run", expand=False)
    assert sum(len(str(entry.payload)) for entry in compact) < 60 * 200
    assert (await log.verify("run")).blobs <= 120


async def test_blobs(log: ContextLog) -> None:
    for content in (b"", b"x", bytes(range(256)) * 100, b"long " * 1000):
        digest = await log.put_blob(content)
        assert await log.put_blob(content) == digest
        assert await log.get_blob(digest) == content


async def test_blobs_come_with_the_entries_that_name_them_or_not_at_all(log: ContextLog) -> None:
    await log.create("run", {})
    contents = [b"", b"an answer \xff" * 100]
    payload = {"bodies": [digest_of(content) for content in contents]}
    with pytest.raises(LogConflict):
        await log.append("run", [NewEntry(kind="note", payload=payload)], epoch=1, expected_seq=9, blobs=contents)
    with pytest.raises(NotFound):
        await log.get_blob(payload["bodies"][1])
    await log.append("run", [NewEntry(kind="note", payload=payload)], epoch=1, blobs=contents)
    assert [await log.get_blob(digest) for digest in payload["bodies"]] == contents


async def test_runs_are_listed_by_what_their_summaries_say(log: ContextLog) -> None:
    def summary(state: str, name: str = "", *, parent: str = "", released: bool = False, **tags: str) -> Any:
        return {
            "state": state,
            "request": {"name": name, "tags": tags},
            "parent": parent or None,
            "released": released,
        }

    await log.create("aa1", summary("queued", "owls", team="birds", size="big"))
    await log.create("aa2", summary("running", "owls", team="birds"))
    await log.create("ab3", summary("running", parent="aa1"))
    note = [NewEntry(kind="note")]
    await log.append("aa1", note, epoch=1)
    await log.branch_off("b4", summary("queued", team="fish"), note, parent_run="aa1", parent=1, fork_seq=1, epoch=1)
    await log.create("c5", "no summary that says anything")

    async def ids(**asked: Any) -> list[str]:
        return [head.run_id for head in await log.heads(**asked)]

    assert await ids() == ["aa1", "aa2", "ab3", "b4", "c5"]
    assert await ids(newest=True) == ["c5", "b4", "ab3", "aa2", "aa1"]
    assert await ids(states=["queued"]) == ["aa1", "b4"]
    assert await ids(states=["queued", "running"], newest=True, limit=2) == ["b4", "ab3"]
    assert await ids(states=[]) == []
    assert await ids(name="owls") == ["aa1", "aa2"]
    assert await ids(parent="aa1") == ["ab3"]
    assert await ids(prefix="a", limit=2) == ["aa1", "aa2"]
    assert await ids(prefix="aa") == ["aa1", "aa2"]
    assert await ids(ids=["c5", "aa1", "none", "b4"], states=["queued"]) == ["aa1", "b4"]
    assert await ids(ids=[]) == []
    assert await ids(below=[]) == []
    assert await ids(tags={"team": "birds"}) == ["aa1", "aa2"]
    assert await ids(tags={"team": "birds", "size": "big"}) == ["aa1"]
    assert await ids(tags={"team": "fish"}) == ["b4"]
    assert await ids(limit=2, beyond="aa2") == ["ab3", "b4"]
    assert await ids(limit=2, beyond="ab3", newest=True) == ["aa2", "aa1"]
    assert await log.states() == {"queued": 2, "running": 2, "": 1}

    ended = NewHead(expected_version=1, value=summary("completed", "owls", released=True, team="birds"))
    await log.append("aa1", [], epoch=2, head=ended)
    assert await ids(states=["completed"]) == ["aa1"]
    assert await ids(states=["queued"]) == ["b4"]
    assert await ids(released=False) == ["aa2", "ab3", "b4", "c5"]
    assert await ids(tags={"team": "birds"}, released=True) == ["aa1"]


async def test_tags_that_were_changed_are_listed_from_then_on(log: ContextLog) -> None:
    def summary(**tags: str) -> Any:
        return {"state": "queued", "request": {"tags": tags}}

    async def ids(**tags: str) -> list[str]:
        return [head.run_id for head in await log.heads(tags=tags)]

    await log.create("one", summary(team="birds", size="big"))
    await log.create("two", summary(team="birds"))
    changed = [NewEntry(kind="tagged", payload={})]
    writes = [
        log.append("one", changed, epoch=None, head=NewHead(expected_version=1, value=summary(team="fish"))),
        log.append("one", changed, epoch=None, head=NewHead(expected_version=2, value=summary(team="bats", new="x"))),
        log.append("two", changed, epoch=None, head=NewHead(expected_version=1, value=summary())),
    ]
    await asyncio.gather(*writes)
    assert (await ids(team="bats"), await ids(new="x")) == (["one"], ["one"])
    assert await ids(team="birds") + await ids(size="big") + await ids(team="fish") == []


@pytest.mark.parametrize(
    "value",
    [float("nan"), [1, {"a": float("inf")}], object(), "\ud800", {"a": "\udfff"}],
)
async def test_what_is_no_json_is_refused_and_written_nowhere(log: ContextLog, value: Any) -> None:
    await log.create("run", {})
    for write in (
        lambda: log.append("run", [NewEntry(kind="note", payload=value)], epoch=1),
        lambda: log.append("run", [NewEntry(kind="note")], epoch=1, head=NewHead(expected_version=1, value=object())),
        lambda: log.append("run", [NewEntry(kind="note", key="a\0b")], epoch=1),
        lambda: log.create("no\0run", {}),
        lambda: log.create("other", {}, key="\ud800"),
        lambda: log.keep("queue", "a", object()),
    ):
        with pytest.raises(InvalidValue):
            await write()
    assert (await log.head("run")).seq == 0
    assert [head.run_id for head in await log.heads()] == ["run"]


async def test_values_have_limits_that_are_told(log: ContextLog, monkeypatch: pytest.MonkeyPatch) -> None:
    await log.create("run", {})
    wide = {f"field {number}": number for number in range(400_000)}
    with pytest.raises(TooLarge, match=r"payload of an entry note has \d+ bytes, the limit is 4194304") as refused:
        await log.append("run", [NewEntry(kind="note", payload=wide)], epoch=1)
    assert refused.value.details["size_bytes"] > refused.value.details["max_bytes"] == 4 << 20
    [written] = await log.append("run", [NewEntry(kind="note", payload={"text": "x" * (8 << 20)})], epoch=1)
    assert (await log.read("run"))[0] == written
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InvalidValue, match="nested too deeply"):
        await log.append("run", [NewEntry(kind="note", payload=deep)], epoch=1)


def _end(cost_usd: float | None = None, *, kind: str = "model.committed", **payload: Any) -> NewEntry:
    usage = {"input_tokens": 100, "output_tokens": 20, "cached_tokens": 60, "cache_written_tokens": 7}
    priced = {} if cost_usd is None else {"cost_usd": cost_usd}
    return NewEntry(kind=kind, key="main/1", payload={"usage": usage, **priced, **payload})


async def test_a_head_says_what_its_turns_have_cost(log: ContextLog, new_log: Callable[[], Opener]) -> None:
    for name in ("one", "two"):
        await log.create(name, {})
    assert (await log.head("one")).spent == Spent()
    ends = [_end(0.1), _end(0.2), _end(), _end(0.000_001, estimated=True)]
    await asyncio.gather(*(log.append("one", [end], epoch=1) for end in ends))  # perhaps one transaction
    once = Spent(
        calls=4, input_tokens=400, output_tokens=80, cached_tokens=240, cache_written_tokens=28, cost_usd=0.300_001,
        unpriced=1, estimated=1,
    )  # fmt: skip
    assert (await log.head("one")).spent == once and (await log.head("two")).spent == Spent()
    unanswered = NewEntry(kind="model.aborted", key="main/1", payload={"reason": "the server ended"})
    refused = NewEntry(kind="model.aborted", key="main/1", payload={"reason": "over", "answer": {}, "unasked": True})
    copy = replace(_end(0.1), is_copy=True)
    await log.fork("one", [NewEntry(kind="diverged"), copy, unanswered, refused], parent=1, fork_seq=1, epoch=1)
    assert (await log.head("one")).spent == once
    await log.append("one", [_end(0.5, kind="model.aborted", answer={})], epoch=1)  # broke off, and was paid
    spent = (await log.head("one")).spent
    assert (spent.calls, spent.tokens, spent.cost_usd) == (5, 600, 0.800_001)
    with pytest.raises(StaleEpoch):
        await log.append("one", [_end(9.0)], epoch=0)
    huge = {"usage": {"input_tokens": 2**60, "output_tokens": -1, "cached_tokens": "x"}, "cost_usd": 1e300}
    await log.append("two", [NewEntry(kind="model.committed", payload=huge)], epoch=1)  # of whatever program
    assert (await log.head("two")).spent.output_tokens == 0
    other = await new_log()()
    exported = [line async for line in log.export("one")]
    assert (await other.take_up(_each(exported))).spent == (await other.head("one")).spent == spent
    await other.close()
    await log.prune("one")
    assert (await log.head("one")).spent == spent
    assert (await log.take_up(_each(exported))).spent == spent  # it was counted when it was written
    await log.append("one", [_end(0.1)], epoch=1)
    assert (await log.head("one")).spent.calls == 6


async def test_what_runs_spend_jointly_is_one_sum(log: ContextLog, new_log: Callable[[], Opener]) -> None:
    """In each budget and period that the end of a turn names; that they are pruned, or taken up, changes nothing."""
    day, month = ("owl*", "2026-11-27"), ("*", "2026-11")
    for name in ("one", "two"):
        await log.create(name, {})
    assert await log.spent_jointly(*day) == Spent()
    ends = [replace(_end(0.1), joint=(day, month)), replace(_end(0.2), joint=(month,)), _end(9.0)]
    await asyncio.gather(*(log.append(run_id, [end], epoch=1) for end in ends for run_id in ("one", "two")))
    each = {"input_tokens": 100, "output_tokens": 20, "cached_tokens": 60, "cache_written_tokens": 7}
    twice = Spent(calls=2, cost_usd=0.2, **{name: 2 * tokens for name, tokens in each.items()})
    assert await log.spent_jointly(*day) == twice
    spent = await log.spent_jointly(*month)
    assert (spent.calls, spent.tokens, spent.cost_usd) == (4, 480, 0.6)
    for other in (("owl*", "2026-11-28"), ("owl*", ""), ("owl", "2026-11-27"), ("*", "2026-11-27")):
        assert await log.spent_jointly(*other) == Spent()
    refused = NewEntry(kind="model.aborted", payload={"reason": "over", "answer": {}, "unasked": True}, joint=(day,))
    copy = replace(_end(0.1), is_copy=True, joint=(day,))
    await log.append("one", [refused, copy], epoch=1)
    with pytest.raises(StaleEpoch):
        await log.append("one", [replace(_end(9.0), joint=(day,))], epoch=0)
    assert await log.spent_jointly(*day) == twice
    exported = [line async for line in log.export("one")]
    await log.prune("one")
    await log.take_up(_each(exported))
    assert await log.spent_jointly(*day) == twice
    opener = new_log()
    other_log = await opener()
    await other_log.take_up(_each(exported))  # spent there it was not
    assert await other_log.spent_jointly(*day) == Spent()
    await other_log.append("one", [replace(_end(0.3), joint=(day,))], epoch=1)
    await other_log.close()
    other_log = await opener()
    assert (await other_log.spent_jointly(*day)).cost_usd == 0.3
    await other_log.close()


async def _each(lines: list[bytes]) -> AsyncIterator[bytes]:
    for line in lines:
        yield line
