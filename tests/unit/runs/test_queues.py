"""Queues: how many go on at once, in which order, at which rate; also over restarts, and against a model."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import Conflict, InvalidValue, NotFound
from perdure.model import RunState
from perdure.runs.queueing import Queues
from perdure.runs.queues import Active, IsFull, Place, Queue, Waiting, order, plan
from perdure.testing.clock import FakeClock
from perdure.testing.house import AGENT, nothing
from perdure.testing.machines import Ask
from perdure.testing.programs import Steps, works


async def begun(house: Any, runs: list[str]) -> list[int]:
    """Which of the runs have left the queue, by their place in the list."""
    infos = [await house.engine.info(run_id) for run_id in runs]
    return [number for number, info in enumerate(infos) if info.state is not RunState.QUEUED]


async def settled(house: Any, name: str, active: int) -> None:
    """Wait until so many have been started by their drivers, not only let go."""
    runs = house.engine.queues._lines[name].active
    assert len(runs) == active
    for run_id in list(runs):
        run = house.engine._runs[run_id]
        assert await run.until(lambda run=run: run.state is not RunState.QUEUED, 20)


async def end(house: Any, run_id: str) -> None:
    await house.engine.signal(run_id, "go", None)
    await house.ends(run_id)


async def test_so_many_at_once_in_order_of_priority_and_arrival(house: Any) -> None:
    await house.engine.queues.create(Queue(name="q", concurrency=2))
    runs = [await house.start(works, queue="q", priority=priority) for priority in (0, 0, 0, 5, 5, -1)]
    await settled(house, "q", 2)
    assert await begun(house, runs) == [0, 1]
    shown = house.engine.queues.show("q")
    assert (shown["waiting"], shown["active"]) == (4, 2)
    assert shown["next"] == [runs[3], runs[4], runs[2], runs[5]]
    await house.reaches(runs[0], RunState.SUSPENDED)  # asleep it has its place all the same
    await house.restart()
    await settled(house, "q", 2)
    assert await begun(house, runs) == [0, 1]
    for done, expected in ((0, [0, 1, 3]), (1, [0, 1, 3, 4]), (3, [0, 1, 2, 3, 4])):
        await end(house, runs[done])
        await settled(house, "q", 2)
        assert await begun(house, runs) == expected
    await house.engine.cancel(runs[5])  # it waits still
    assert (await house.engine.info(runs[5])).state is RunState.CANCELLED
    assert house.engine.queues.show("q")["waiting"] == 0


async def test_so_many_with_one_key(house: Any) -> None:
    await house.engine.queues.create(Queue(name="q", concurrency=3, key_concurrency=1))
    runs = [await house.start(works, queue="q", queue_key=key) for key in ("a", "a", "b", None, None)]
    await settled(house, "q", 3)
    assert await begun(house, runs) == [0, 2, 3]
    await end(house, runs[0])
    await settled(house, "q", 3)
    assert await begun(house, runs) == [0, 1, 2, 3]


async def test_a_rate_also_of_runs_that_ended_before_a_restart(house: Any) -> None:
    clock = await house.at(FakeClock())
    await house.engine.queues.create(Queue(name="q", rate=2, period_s=60))

    def quick() -> Steps:
        yield Ask("complete", {"result": 1})

    runs = [await house.start(quick, queue="q") for _ in range(5)]
    for run_id in runs[:2]:
        await house.ends(run_id)
        await house.released(run_id)
    assert await begun(house, runs) == [0, 1]
    clock.move(30)
    await house.restart()
    assert await begun(house, runs) == [0, 1]
    clock.move(30)
    for run_id in runs[2:4]:
        await house.ends(run_id)
    assert await begun(house, runs) == [0, 1, 2, 3]
    clock.move(60)
    await house.ends(runs[4])


async def test_a_paused_queue_begins_nothing_until_it_is_resumed(house: Any) -> None:
    queues = house.engine.queues
    await queues.create(Queue(name="q", paused=True))
    runs = [await house.start(works, queue="q") for _ in range(2)]
    await house.restart()
    queues = house.engine.queues
    assert await begun(house, runs) == []
    await queues.change("q", {"concurrency": 1})
    assert await begun(house, runs) == []
    await queues.change("q", {"paused": False})
    await settled(house, "q", 1)
    await queues.change("q", {"concurrency": None})  # a limit that is raised is looked at at once
    await settled(house, "q", 2)
    assert await begun(house, runs) == [0, 1]
    await house.restart()
    shown = house.engine.queues.show("q")
    assert (shown["concurrency"], shown["paused"], shown["active"]) == (None, False, 2)


async def test_a_child_does_not_wait_for_the_place_that_its_parent_keeps(house: Any) -> None:
    def program() -> Steps:
        begun = yield Ask("begin", {})
        if begun.value["agent"].endswith(":main"):
            said = yield Ask("wait", {"kind": "child", "function": "child"})
            yield Ask("complete", {"result": said.value["result"]})
        yield Ask("complete", {"result": "grown"})

    await house.engine.queues.create(Queue(name="q", concurrency=1))
    run_id = await house.start(program, queue="q", queue_key="a", priority=1)
    assert (await house.ends(run_id)).result == "grown"


async def test_a_fork_of_a_run_whose_queue_is_gone_is_refused(house: Any) -> None:
    await house.engine.queues.create(Queue(name="q"))
    run_id = await house.start(works, queue="q")
    await house.reaches(run_id, RunState.SUSPENDED)
    await house.engine.queues.remove("q")
    with pytest.raises(NotFound, match="no such queue: q"):
        await house.engine.fork(run_id)


async def test_what_is_not_there_or_wrong_is_said(house: Any) -> None:
    queues = house.engine.queues
    with pytest.raises(NotFound, match="no such queue: q"):
        await house.start(nothing, queue="q")
    assert await house.engine.runs() == []
    for field, value in (("priority", 1), ("queue_key", "k")):
        with pytest.raises(InvalidValue, match=f"{field} is of a queue"):
            await house.start(nothing, **{field: value})
    for name in ("", "a/b", "a b", "x" * 101, "\n"):
        with pytest.raises(InvalidValue, match="not the name of a queue"):
            await queues.create(Queue(name=name))
    for fields, words in (
        ({"concurrency": 0}, "concurrency is 0"),
        ({"rate": -1}, "rate is -1"),
        ({"period_s": float("nan")}, "period_s is nan"),
    ):
        with pytest.raises(InvalidValue, match=words):
            await queues.create(Queue(name="q", **fields))
    await queues.create(Queue(name="q", paused=True))
    with pytest.raises(Conflict, match="queue q already"):
        await queues.create(Queue(name="q"))
    for name in ("change", "remove", "show"):
        with pytest.raises(NotFound, match="no such queue: other"):
            await getattr(queues, name)("other", *([{}] if name == "change" else []))
    run_id = await house.start(works, queue="q")
    with pytest.raises(Conflict, match="1 runs wait in the queue q"):
        await queues.remove("q")
    await house.engine.cancel(run_id)
    await queues.remove("q")
    with pytest.raises(NotFound):
        await house.start(nothing, queue="q")


async def test_another_server_learns_of_a_queue_when_it_needs_it_and_of_changes_soon(house: Any) -> None:
    clock = await house.at(FakeClock())
    wakes: list[float] = []
    other = Queues(house.context, clock, lambda at, name: wakes.append(at))
    await other.open()
    await house.engine.queues.create(Queue(name="q", concurrency=1))
    await other.check(msgspec.structs.replace(AGENT, queue="q"))
    await house.engine.queues.change("q", {"concurrency": 5})
    assert wakes[-1] == clock.time() + 60
    await other.look()
    assert other.show("q")["concurrency"] == 5
    await house.engine.queues.remove("q")
    await other.look()
    assert other.all() == []


# -- against a model


def naive(
    queue: Queue, waiting: list[Place], active: dict[str, str | None], begun: list[float], now: float
) -> list[Place]:
    """One after the other: the first in order that no limit keeps."""
    waiting, active, begun, chosen = list(waiting), dict(active), list(begun), []
    while not queue.paused:
        for place in sorted(waiting, key=lambda one: (-one.priority, one.number)):
            same = [key for key in active.values() if key == place.key and key is not None]
            if queue.concurrency is not None and len(active) >= queue.concurrency:
                continue
            if queue.key_concurrency is not None and len(same) >= queue.key_concurrency:
                continue
            if queue.rate is not None and len([at for at in begun if at > now - queue.period_s]) >= queue.rate:
                continue
            waiting.remove(place)
            active[place.run_id] = place.key
            begun.append(now)
            chosen.append(place)
            break
        else:
            break
    return chosen


limit = st.none() | st.integers(1, 4)
keys = st.sampled_from([None, "a", "b", "c"])


@given(
    st.builds(
        Queue,
        name=st.just("q"),
        concurrency=limit,
        key_concurrency=limit,
        rate=limit,
        period_s=st.sampled_from([1.0, 5.0]),
        paused=st.booleans(),
    ),
    st.lists(st.tuples(keys, st.integers(-2, 2)), max_size=10),
    st.lists(keys, max_size=6),
    st.lists(st.sampled_from([90.0, 95.5, 96.0, 99.5, 100.0]), max_size=6),
)
def test_the_plan_is_what_one_after_the_other_would_do(
    queue: Queue, places: list[Any], keys_active: list[Any], begun: list[float]
) -> None:
    waiting = [Place(run_id=f"w{n}", key=key, priority=p, number=n) for n, (key, p) in enumerate(places)]
    waiting.sort(key=lambda place: place.order)
    active = {f"a{n}": key for n, key in enumerate(keys_active)}
    begun.sort()
    chosen, again_at = plan(queue, Waiting(waiting).beside, Active(active), begun, 100.0)
    assert chosen == naive(queue, waiting, active, begun, 100.0)
    if again_at is not None:  # at that moment something more may begin
        assert again_at > 100.0 and queue.rate is not None
        rest = [place for place in waiting if place not in chosen]
        after = {**active, **{place.run_id: place.key for place in chosen}}
        at = begun + [100.0] * len(chosen)
        assert naive(queue, rest, after, at, again_at) != []
        assert naive(queue, rest, after, at, 100.0) == []


@given(st.lists(st.tuples(keys, st.integers(-2, 2), st.booleans()), max_size=30), st.sets(keys))
def test_who_waits_is_in_order_whoever_comes_and_goes(steps: list[Any], full: set[str | None]) -> None:
    waiting, model = Waiting(), list[Place]()
    for number, (key, priority, leaves) in enumerate(steps):
        place = Place(run_id=f"w{number}", key=key, priority=priority, number=number)
        waiting.add(place)
        model.append(place)
        if leaves:
            waiting.remove(model.pop(number * 7 % len(model)))
        model.sort(key=lambda one: one.order)
        assert (list(waiting), len(waiting)) == (model, len(model))
        assert list(waiting.beside(lambda key: key in full)) == [one for one in model if one.key not in full]


def test_a_turn_costs_no_more_where_many_wait() -> None:
    """Counted in looks at keys, not in time."""
    for many in (100, 10_000):
        looks: list[str | None] = []
        queue = Queue(name="q", key_concurrency=1)
        waiting = Waiting(Place(run_id=f"w{n:05}", key=f"k{n % 10}", priority=0, number=n) for n in range(many))
        active = Active({f"a{n}": f"k{n}" for n in range(9)})

        def beside(is_full: Any, waiting: Waiting = waiting, looks: list[str | None] = looks) -> Any:
            return waiting.beside(lambda key: looks.append(key) or is_full(key))

        chosen, _ = plan(queue, beside, active, [], 0.0)
        assert [place.run_id for place in chosen] == ["w00009"]
        assert len(looks) <= 11


async def test_a_queue_stays_while_a_run_is_being_made_in_it(house: Any) -> None:
    queues, making, go = house.engine.queues, asyncio.Event(), asyncio.Event()
    await queues.create(Queue(name="q", concurrency=1))
    create = house.context.create

    async def slow(*args: Any, **options: Any) -> Any:
        making.set()
        await go.wait()
        return await create(*args, **options)

    house.context.create = slow
    starting = asyncio.create_task(house.start(works, queue="q"))
    await making.wait()
    with pytest.raises(Conflict, match="1 runs wait in the queue q"):
        await queues.remove("q")
    go.set()
    await end(house, await starting)
    await queues.remove("q")


async def test_a_name_that_is_no_queues_is_not_kept(house: Any) -> None:
    for number in range(5):
        with pytest.raises(NotFound, match="no such queue"):
            await house.start(nothing, queue=f"no-{number}")
    assert list(house.engine.queues._lines) == []


def test_of_two_lines_the_first_with_a_key_begins_and_not_the_other_one_with_it() -> None:
    """As of two servers: each line says what is next before what the other one's first is chosen."""

    def place(name: str, number: int, key: str | None) -> Place:
        return Place(run_id=name, key=key, priority=0, number=number)

    lines = Waiting([place("first", 1, "k")]), Waiting([place("second", 2, "k"), place("third", 3, None)])

    def beside(is_full: IsFull) -> Iterable[Place]:
        return heapq.merge(*(line.beside(is_full) for line in lines), key=order)

    chosen, _ = plan(Queue(name="q", key_concurrency=1), beside, Active(), [], 0.0)
    assert [one.run_id for one in chosen] == ["first", "third"]
