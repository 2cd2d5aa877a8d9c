"""A queue of several servers on one PostgreSQL: its limits hold over all of them, whichever is lost or stopped."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from perdure.errors import Conflict, LeaseLost, Unavailable
from perdure.model import RunState
from perdure.runs import places
from perdure.runs.queues import Place, Queue, order
from perdure.runs.schedules import Schedule
from perdure.runs.states import TERMINAL
from perdure.testing.house import AGENT, House, until
from perdure.testing.machines import Ask
from perdure.testing.programs import Steps, works

Houses = Callable[[], House]


def quick() -> Steps:
    yield Ask("wait", {"kind": "time", "seconds": 0.03})
    yield Ask("complete", {"result": 1})


async def up(houses: Houses, program: Any) -> House:
    house = houses()
    house.machines.program = program
    await house.up()
    return house


async def state(house: House, run_id: str) -> RunState:
    return (await house.engine.info(run_id)).state


async def waits_at(house: House, run_id: str) -> bool:
    """Whether all servers know that this run is the next there."""
    return (await coming(house))[:1] == [run_id]


async def coming(house: House) -> list[str]:
    """The runs that wait there first, as all servers know."""
    lines = await house.context.kept("line", "q")
    return [place["run_id"] for place in lines[0].value.get("coming", {}).get(house.server, ())] if lines else []


async def is_begun(house: House, run_id: str) -> bool:
    return await state(house, run_id) is not RunState.QUEUED


async def taken(house: House, run_id: str) -> bool:
    return run_id in house.engine._runs


async def end(house: House, run_id: str) -> None:
    await house.engine.signal(run_id, "go", None)
    await house.ends(run_id)


def check_limits(moves: list[tuple[float, bool, str | None]], concurrency: int, key_concurrency: int) -> None:
    """moves: when, whether one began (or ended), its key."""
    active, keys = 0, Counter[str | None]()
    for _, began, key in sorted(moves, key=lambda move: move[:2]):
        active += 1 if began else -1
        keys[key] += 1 if began else -1
        assert active <= concurrency
        assert all(keys[name] <= key_concurrency for name in keys if name is not None)
    assert active == 0


@pytest.mark.parametrize("seed", range(3))
async def test_limits_hold_while_servers_are_lost_and_come_back(houses: Houses, seed: int) -> None:
    chance = random.Random(seed)
    concurrency, key_concurrency = chance.choice([(1, 1), (3, 2), (4, 1)])
    all_houses = [await up(houses, quick) for _ in range(2)]
    first, second = all_houses
    await first.engine.queues.create(Queue(name="q", concurrency=concurrency, key_concurrency=key_concurrency))
    runs = {}
    for _ in range(20):
        key = chance.choice(["a", "b", None])
        run_id = await chance.choice(all_houses).start(quick, queue="q", queue_key=key, priority=chance.randint(0, 2))
        runs[run_id] = key
    for blow in range(2):
        lost = all_houses[blow]
        begun = sum([await state(second, run_id) in TERMINAL for run_id in runs]) + 2

        async def more(begun: int = begun) -> bool:
            return sum([await state(all_houses[0], run_id) in TERMINAL for run_id in runs]) >= min(begun, len(runs))

        await until(more)
        await lost.down()
        await lost.up()

    async def over() -> bool:
        return all([await state(first, run_id) is RunState.COMPLETED for run_id in runs])

    await until(over)
    moves = []
    for run_id, key in runs.items():
        entries = await first.entries(run_id)
        assert [entry.kind for entry in entries].count("run.queued") == 1
        begins = next(entry.time for entry in entries if entry.kind == "run.starting")
        moves += [(begins, True, key), (entries[-1].time, False, key)]
    check_limits(moves, concurrency, key_concurrency)
    assert await first.context.kept("place:q") == []


@pytest.mark.parametrize("lost", [False, True])
async def test_a_server_that_was_stopped_before_it_begins_a_run_begins_none_on_what_it_knew(
    houses: Houses, lost: bool
) -> None:
    first, second = await up(houses, works), await up(houses, works)
    await first.engine.queues.create(Queue(name="q", concurrency=1))
    append, stopped, goes_on = first.context.append, asyncio.Event(), asyncio.Event()
    came: list[Any] = []

    async def late(*args: Any, **named: Any) -> Any:
        if came or not any(one.kind == "line" for one in named.get("beside", ())):
            return await append(*args, **named)
        came.append(None)
        stopped.set()
        await goes_on.wait()
        try:
            came.append(await append(*args, **named))
        except Exception as error:
            came.append(error)
            raise

    first.context.append = late  # type: ignore[method-assign]
    mine = await first.start(works, queue="q")
    await stopped.wait()
    its = await second.start(works, queue="q")
    await second.waits(its, "signal")
    if lost:
        former = first.server
        assert first.context.leases is not None and await first.context.leases.remove(former, None)
    goes_on.set()

    async def refused() -> bool:
        return len(came) == 2

    await until(refused)
    assert isinstance(came[1], LeaseLost if lost else Conflict)
    assert await state(second, mine) is RunState.QUEUED
    await end(second, its)

    async def ready() -> bool:
        return await is_begun(second, mine)

    await until(ready)
    assert len(await second.entries(mine, "run.queued")) == 1


async def test_a_run_of_a_lost_server_keeps_its_place(houses: Houses) -> None:
    first, second = await up(houses, works), await up(houses, works)
    await first.engine.queues.create(Queue(name="q", concurrency=1))
    goes = await first.start(works, queue="q")
    await first.waits(goes, "signal")
    waits = await second.start(works, queue="q")
    await until(lambda: waits_at(second, waits))
    await first.down()
    await until(lambda: taken(second, goes))
    await second.engine.queues.due("q")
    assert await state(second, waits) is RunState.QUEUED
    await end(second, goes)
    await second.waits(waits, "signal")


async def test_priority_and_arrival_hold_over_all_servers(houses: Houses) -> None:
    first, second = await up(houses, works), await up(houses, works)
    await first.engine.queues.create(Queue(name="q", concurrency=1))
    goes = await first.start(works, queue="q")
    await first.waits(goes, "signal")
    low = await first.start(works, queue="q")
    await until(lambda: waits_at(first, low))
    high = await second.start(works, queue="q", priority=1)
    late = await second.start(works, queue="q")
    await until(lambda: waits_at(second, high))
    await first.engine.queues.refresh()
    shown = first.engine.queues.show("q")
    assert (shown["active"], shown["waiting"], shown["next"]) == (1, 3, [high, low, late])
    with pytest.raises(Conflict, match="3 runs wait"):
        await first.engine.queues.remove("q")
    await end(first, goes)
    await second.waits(high, "signal")
    assert not await is_begun(first, low)
    await end(second, high)
    await first.waits(low, "signal")
    assert not await is_begun(second, late)


async def test_what_waits_behind_a_key_that_is_full_goes_before_what_came_later_elsewhere(houses: Houses) -> None:
    first, second = await up(houses, works), await up(houses, works)
    await first.engine.queues.create(Queue(name="q", concurrency=2, key_concurrency=1))
    full = await first.start(works, queue="q", queue_key="a")
    await first.waits(full, "signal")  # before it sleeps
    goes = await second.start(works, queue="q", queue_key="b")
    await second.waits(goes, "signal")
    kept_back = await first.start(works, queue="q", queue_key="a", priority=2)
    behind = await first.start(works, queue="q", queue_key="b", priority=1)

    async def both_known() -> bool:
        return await coming(first) == [kept_back, behind]

    await until(both_known)
    late = await second.start(works, queue="q", queue_key="b")
    await until(lambda: waits_at(second, late))
    await end(second, goes)
    await first.waits(behind, "signal")
    assert not await is_begun(second, late) and not await is_begun(second, kept_back)
    await end(first, full)
    await first.waits(kept_back, "signal")
    await end(first, behind)
    await second.waits(late, "signal")


def should_go(runs: list[Place], over: set[str], going: set[str], queue: Queue) -> set[str]:
    """One after the other, the first that no limit keeps."""
    going = going - over
    for run in sorted(runs, key=order):
        key_count = sum(other.key == run.key for other in runs if other.run_id in going)
        is_full = queue.key_concurrency is not None and run.key is not None and key_count >= queue.key_concurrency
        if run.run_id not in over and len(going) < (queue.concurrency or len(runs)) and not is_full:
            going = going | {run.run_id}
    return going


@pytest.mark.parametrize("seed", range(4))
async def test_runs_of_all_servers_begin_in_the_order_of_one_line(
    houses: Houses, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "LEFT_S", 60.0)  # they live, however busy this machine is
    chance = random.Random(seed)
    queue = Queue(name="q", concurrency=chance.choice([1, 2, 4]), key_concurrency=chance.choice([None, 1, 2]))
    all_houses = [await up(houses, works) for _ in range(3)]
    first = all_houses[0]
    await first.engine.queues.create(msgspec.structs.replace(queue, paused=True))
    runs, at = list[Place](), dict[str, House]()
    for _ in range(14):
        house, key, priority = chance.choice(all_houses), chance.choice(["a", "b", None]), chance.randint(0, 2)
        run_id = await house.start(works, queue="q", queue_key=key, priority=priority)
        created = int((await house.engine.info(run_id)).created * 1e6)
        runs.append(Place(run_id=run_id, key=key, priority=priority, number=created))
        at[run_id] = house
    going, over = should_go(runs, set(), set(), queue), set[str]()

    async def known() -> bool:
        return going <= {run_id for house in all_houses for run_id in await coming(house)}

    await until(known)
    await first.engine.queues.change("q", {"paused": False})
    while going:

        async def as_they_should(expected: frozenset[str] = frozenset(going | over)) -> bool:
            begun = {run.run_id for run in runs if await is_begun(first, run.run_id)}
            assert begun <= expected, f"seed {seed}"
            return begun == expected

        await until(as_they_should)
        ends = chance.choice(sorted(going))
        await end(at[ends], ends)
        over.add(ends)
        going = should_go(runs, over, going, queue)
    assert len(over) == len(runs)


async def idle(*args: Any) -> None:
    """Nobody's turn."""


async def test_what_is_left_to_a_server_that_does_not_take_it_is_taken(
    houses: Houses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "LEFT_S", 0.5)
    first, second = await up(houses, works), await up(houses, works)
    await first.engine.queues.create(Queue(name="q", concurrency=1))
    goes = await first.start(works, queue="q")
    await first.waits(goes, "signal")
    theirs = await second.start(works, queue="q", priority=1)
    await until(lambda: waits_at(second, theirs))
    mine = await first.start(works, queue="q")
    monkeypatch.setattr(second.engine.queues._places, "turn", idle)  # it lives, and does nothing
    await end(first, goes)
    await first.waits(mine, "signal")
    monkeypatch.undo()
    await until(lambda: waits_at(second, theirs))


async def test_a_rate_is_one_for_all_also_after_a_loss(houses: Houses) -> None:
    first, second = await up(houses, works), await up(houses, works)
    await first.engine.queues.create(Queue(name="q", rate=3, period_s=3600))
    runs = [await house.start(works, queue="q") for _ in range(3) for house in (first, second)]

    async def begun(number: int) -> bool:
        return sum([await is_begun(second, run_id) for run_id in runs]) == number

    await until(lambda: begun(3))
    await first.down()

    async def all_taken() -> bool:
        return set(runs) <= set(second.engine._runs)

    await until(all_taken)
    await second.engine.queues.due("q")
    assert await begun(3)
    await second.engine.queues.change("q", {"rate": 4})
    await until(lambda: begun(4))


async def test_a_queue_that_one_server_pauses_begins_nothing_at_another(houses: Houses) -> None:
    first, second = await up(houses, works), await up(houses, works)
    await first.engine.queues.create(Queue(name="q"))
    await second.waits(await second.start(works, queue="q"), "signal")
    await first.engine.queues.change("q", {"paused": True})
    run_id = await second.start(works, queue="q")
    await second.engine.queues.due("q")
    assert await state(second, run_id) is RunState.QUEUED
    await first.engine.queues.change("q", {"paused": False, "concurrency": 2})
    await second.waits(run_id, "signal")


async def test_a_run_whose_queue_another_server_removed_while_it_was_made_fails_and_says_why(houses: Houses) -> None:
    first, second = await up(houses, quick), await up(houses, quick)
    await first.engine.queues.create(Queue(name="q"))
    create = first.log.create

    async def late(*args: Any, **how: Any) -> Any:
        await second.engine.queues.remove("q")
        return await create(*args, **how)

    first.log.create = late
    run_id = await first.start(quick, queue="q")
    info = await first.ends(run_id)
    assert info.state is RunState.FAILED
    assert info.error is not None and info.error["code"] == "not-found"
    assert info.error["message"] == "the queue q was removed while this run was being made"
    entries = [entry.kind for entry in await first.entries(run_id)]
    assert (entries[0], entries[-1]) == ("run.queued", "run.failed")
    first.log.create = create
    await first.engine.queues.create(Queue(name="q"))
    assert (await first.ends(await first.start(quick, queue="q"))).result == 1


async def test_each_moment_of_a_schedule_starts_one_run(houses: Houses) -> None:
    first, second = await up(houses, quick), await up(houses, quick)
    await first.engine.schedules.create(Schedule(name="often", request=AGENT, every_s=1.0, catch_up="all"))
    await second.engine.schedules.open()

    async def three() -> bool:
        await asyncio.gather(
            *[house.engine.schedules.turn("often") for house in (first, second)], return_exceptions=True
        )
        return len(await first.context.heads(tags={"schedule": "often"})) >= 3

    await until(three)
    await first.engine.schedules.pause("often", True)
    heads = await first.context.heads(tags={"schedule": "often"})
    moments = sorted(head.value["request"]["metadata"]["moment"] for head in heads)
    assert len(set(moments)) == len(moments) >= 3
    assert all(abs((later - earlier) - 1.0) < 0.01 for earlier, later in pairwise(moments))


async def test_a_run_whose_take_over_did_not_succeed_at_once_begins_all_the_same(houses: Houses) -> None:
    first, second = await up(houses, quick), await up(houses, quick)
    await first.engine.queues.create(Queue(name="q", paused=True))
    run_id = await first.start(quick, queue="q")
    real, failures = second.log.head, 2

    async def head(asked: str) -> Any:
        nonlocal failures
        if asked == run_id and second.engine.has(run_id) and failures:
            failures -= 1
            raise Unavailable("the database is away")
        return await real(asked)

    second.log.head = head
    await first.down()
    await until(lambda: taken(second, run_id))
    await second.engine.queues.change("q", {"paused": False})
    assert (await second.ends(run_id)).state is RunState.COMPLETED
    assert failures == 0
