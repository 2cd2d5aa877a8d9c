"""A program that forks its own run: the call returns once in each branch, whatever is lost meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.errors import MachineFailed, Unavailable
from perdure.model import RunState
from perdure.runs.forking import FORKS_MAX
from perdure.runs.queues import Queue
from perdure.testing.house import until
from perdure.testing.machines import Ask, Effect
from perdure.testing.programs import Steps, approval, chat


def fork(count: int = 2) -> Ask:
    return Ask("fork", {"count": count})


def result_of(run: str, **more: Any) -> Ask:
    return Ask("wait", {"kind": "fork", "run": run, **more})


def best_of(count: int = 2) -> Steps:
    """One turn for all; each fork has one of its own, and the maker takes what they made of it."""
    facts = yield chat("facts")
    said = (yield fork(count)).value
    text = facts.value["choices"][0]["message"]["content"]
    if said["number"]:
        draft = yield chat(f"draft {said['number']}")
        yield Ask("complete", {"result": [text, draft.value["choices"][0]["message"]["content"]]})
    waits = [{"kind": "fork", "run": one} for one in said["forks"]]
    drafts = yield Ask("wait/set", {"mode": "all", "waits": waits})
    yield Ask("complete", {"result": [one["result"][1] for one in drafts.value["waits"]]})


async def named(house: Any, run_id: str) -> list[str]:
    """The forks that a maker's log names, once it does."""
    async for entry in house.context.follow(run_id, after=0):
        if entry.kind == "fork" and entry.run_id == run_id:
            return list(entry.payload["forks"])
    raise AssertionError("no fork was made")


async def forks_of(house: Any, run_id: str, count: int = 2) -> list[str]:
    """They, once they are there."""
    made = await named(house, run_id)
    assert len(made) == count
    ids = set(made)

    async def are_there() -> bool:
        return ids <= {info.id for info in await house.engine.runs()}

    await until(are_there)
    return made


async def test_the_call_returns_once_in_each_branch_and_the_maker_has_their_results(house: Any, provider: Any) -> None:
    run_id = await house.start(lambda: best_of(3))
    info = await house.ends(run_id)
    assert info.result == [f"answer to draft {number}" for number in (1, 2, 3)]
    forks = await forks_of(house, run_id, 3)
    for number, one in enumerate(forks, 1):
        made = await house.ends(one)
        assert made.result == ["answer to facts", f"answer to draft {number}"]
        assert (made.origin.run_id, made.parent, made.turns_asked) == (run_id, "", 1)
        await house.context.verify(one)
        own = [entry for entry in await house.entries(one) if entry.run_id == one]
        assert [entry.kind for entry in own[:3]] == ["fork", "forked", "run.queued"]
        assert own[0].payload["number"] == number
    assert provider.requests == 4  # the facts once
    assert house.machines.done.count("start") == 1  # the forks went on from the snapshot that the call takes
    assert house.machines.done.count("fork") == 3
    assert info.children == []


async def test_a_maker_that_waits_sleeps_and_a_fork_fails(house: Any) -> None:
    def program() -> Steps:
        said = (yield fork(1)).value
        if said["number"]:
            yield approval()
            yield Ask("fail", {"error": {"code": "no-good", "message": "no"}})
        late = yield result_of(said["forks"][0], timeout_s=0.01)
        done = yield result_of(said["forks"][0])
        yield Ask("complete", {"result": [late.value["timed_out"], done.value["error"]["code"]]})

    run_id = await house.start(program)
    (one,) = await forks_of(house, run_id, 1)
    await house.reaches(one, RunState.SUSPENDED)
    assert (await house.reaches(run_id, RunState.SUSPENDED)).waits[0]["run"] == one
    await house.restart()
    await house.engine.approve(one, None, approved=True)
    assert (await house.ends(one)).state is RunState.FAILED
    assert (await house.ends(run_id)).result == [True, "no-good"]


async def test_a_maker_that_ends_leaves_its_forks_alone(house: Any) -> None:
    def program() -> Steps:
        said = (yield fork(2)).value
        if said["number"]:
            verdict = yield approval()
            yield Ask("complete", {"result": [said["number"], verdict.value["by"]]})
        yield result_of(said["forks"][0])

    run_id = await house.start(program)
    forks = await forks_of(house, run_id)
    await house.reaches(run_id, RunState.SUSPENDED)
    await house.engine.cancel(run_id)
    assert (await house.ends(run_id)).state is RunState.CANCELLED
    for number, one in enumerate(forks, 1):
        await house.reaches(one, RunState.SUSPENDED)
        await house.engine.approve(one, None, approved=True, by="ann")
        assert (await house.ends(one)).result == [number, "ann"]


async def test_machines_that_are_lost_are_told_again_which_branch_they_are(house: Any) -> None:
    def program() -> Steps:
        said = (yield fork(2)).value
        verdict = yield approval()
        yield Ask("complete", {"result": [said["number"], said["run_id"], verdict.value["approved"]]})

    run_id = await house.start(program)
    forks = await forks_of(house, run_id)
    for one in (run_id, *forks):
        await house.reaches(one, RunState.SUSPENDED)
    house.machines.sandboxes.clear()  # with all their snapshots
    await house.restart()
    for number, one in enumerate((run_id, *forks)):
        await house.engine.approve(one, None, approved=True)
        assert (await house.ends(one)).result == [number, one, True]
    assert len(await house.engine.runs()) == 3


async def test_forks_whose_server_dies_among_them_are_made_up_and_are_no_others(house: Any) -> None:
    real, made = house.log.branch_off, list[str]()

    async def dies(fork_id: str, *args: Any, **more: Any) -> Any:
        if len(made) == 1:
            raise Unavailable("the server dies here")
        made.append(fork_id)
        return await real(fork_id, *args, **more)

    house.log.branch_off = dies
    run_id = await house.start(lambda: best_of(3))
    forks = await named(house, run_id)
    await house.appears(forks[0])
    await house.down()
    house.log.branch_off = real
    await house.up()
    assert (await house.ends(run_id)).result == [f"answer to draft {number}" for number in (1, 2, 3)]
    assert made == forks[:1]
    assert {info.id for info in await house.engine.runs()} == {run_id, *forks}


async def test_a_fork_of_a_fork(house: Any) -> None:
    def program() -> Steps:
        ways = []
        for _ in range(2):
            said = (yield fork(2)).value
            ways.append(said["number"])
        yield Ask("complete", {"result": ways})

    run_id = await house.start(program)
    await house.ends(run_id)
    ids = set[str]()
    found = [run_id]
    while found:
        one = found.pop()
        ids.add(one)
        await house.ends(one)
        mine = [e for e in await house.entries(one, "fork") if e.run_id == one and not e.payload["number"]]
        found += [fork_id for entry in mine for fork_id in entry.payload["forks"]]
    results = [(await house.ends(one)).result for one in ids]
    assert sorted(results) == [[first, second] for first in range(3) for second in range(3)]


async def test_forks_pass_through_no_queue(house: Any) -> None:
    await house.engine.queues.create(Queue(name="one", concurrency=1))
    run_id = await house.start(best_of, queue="one")
    assert len((await house.ends(run_id)).result) == 2


async def test_a_fork_that_is_taken_back_to_its_beginning_is_the_same_fork(house: Any) -> None:
    def program() -> Steps:
        said = (yield fork(1)).value
        verdict = yield approval()
        yield Ask("complete", {"result": [said["number"], verdict.value["by"]]})

    run_id = await house.start(program)
    (one,) = await forks_of(house, run_id, 1)
    await house.reaches(one, RunState.SUSPENDED)
    begins = next(entry.seq for entry in await house.entries(one) if entry.run_id == one)
    await house.engine.rewind(one, begins)
    await house.reaches(one, RunState.SUSPENDED)
    await house.engine.approve(one, None, approved=True, by="ann")
    assert (await house.ends(one)).result == [1, "ann"]
    assert len(await house.engine.runs()) == 2


async def test_a_fork_from_outside_after_the_call_has_what_its_maker_was_told(house: Any) -> None:
    run_id = await house.start(best_of)
    info = await house.ends(run_id)
    (outside,) = await house.engine.fork(run_id, at=(await house.entries(run_id, "fork"))[0].seq)
    assert (await house.ends(outside.id)).result == info.result
    assert len(await house.engine.runs()) == 4


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"count": 0}, "0 forks were asked for"),
        ({"count": -1}, "-1 forks were asked for"),
        ({"count": FORKS_MAX + 1}, "101 forks were asked for"),
        ({"count": "2"}, "Expected `int`, got `str`"),
        ({"cuont": 2}, "unknown field 'cuont'"),
    ],
)
async def test_what_is_refused(house: Any, body: dict[str, Any], message: str) -> None:
    def program() -> Steps:
        refused = yield Ask("fork", body)
        yield Ask("complete", {"result": [refused.status, refused.value["error"]["message"]]})

    status, said = (await house.ends(await house.start(program))).result
    assert status == 400 and message in said
    assert len(await house.engine.runs()) == 1


async def test_no_fork_within_a_step(house: Any) -> None:
    def program() -> Steps:
        yield Ask("step", {"name": "pay"}, at=0)
        refused = yield Ask("fork", {"count": 2}, lane="other")
        yield Ask("step/end", {"result": 1}, at=0)
        taken = yield Ask("fork", {"count": 2}, lane="other")
        yield Ask("complete", {"result": [refused.value["error"]["message"], taken.value["number"]]})

    run_id = await house.start(program)
    assert (await house.ends(run_id)).result == ["a fork within a step", 0]
    assert [(await house.ends(one)).result[1] for one in await forks_of(house, run_id)] == [1, 2]


async def test_a_program_that_forks_itself_for_ever_is_stopped(house: Any) -> None:
    def program() -> Steps:
        while True:
            said = yield fork(1)
            if said.status != 200:
                yield Ask("complete", {"result": said.value["error"]["message"]})
                return
            if not said.value["number"]:
                yield Ask("complete", {"result": "made one"})
                return

    one = await house.start(program)
    results = []
    while (info := await house.ends(one)).result == "made one":
        results.append(one)
        one = (await house.entries(one, "fork"))[-1].payload["forks"][0]
    assert info.result == "this run is 16 levels deep: it makes no forks" and len(results) == 16


async def test_a_capture_that_fails_is_told_and_recorded(house: Any) -> None:
    def refuse(*_: Any) -> None:
        raise MachineFailed("no room for a snapshot")

    house.machines.before["checkpoint"] = refuse

    def program() -> Steps:
        refused = yield fork(1)
        yield Effect(lambda: house.machines.before.clear())
        taken = yield fork(1)
        yield Ask("complete", {"result": [refused.value["error"]["message"], taken.value["number"]]})

    run_id = await house.start(program)
    assert (await house.ends(run_id)).result == ["no room for a snapshot", 0]
    (one,) = await forks_of(house, run_id, 1)
    assert (await house.ends(one)).result == ["no room for a snapshot", 1]


async def test_only_forks_of_ones_own_are_waited_for(house: Any) -> None:
    def other() -> Steps:
        yield Ask("complete", {"result": "secret"})

    stranger = await house.start(other)
    await house.ends(stranger)

    def program() -> Steps:
        said = []
        for run in (stranger, "nobody", ""):
            refused = yield result_of(run)
            said.append(refused.value["error"]["message"])
        yield Ask("complete", {"result": said})

    told = (await house.ends(await house.start(program))).result
    assert told[:2] == [f"this run made no fork {run!r}" for run in (stranger, "nobody")]
    assert told[2] == 'a wait for a fork needs its id: "run"'
