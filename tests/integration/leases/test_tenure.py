"""Several servers on one PostgreSQL: leases, the fence, and what becomes of the runs of a lost one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any

import pytest

from perdure.context.log import NewEntry
from perdure.errors import LeaseLost, Unavailable
from perdure.model import RunState
from perdure.testing.house import House, until
from perdure.testing.machines import Ask, Effect
from perdure.testing.postgres import PostgresServer

Houses = Callable[[], House]


async def servers(house: House) -> list[str]:
    assert house.context.leases is not None
    return [lease.server for lease in await house.context.leases.leases()]


async def owner(house: House, run_id: str) -> str:
    assert house.context.leases is not None
    return (await house.context.leases.owner(run_id)).server


def waiting(ledger: list[str]) -> Callable[[], Generator[Any, Any, Any]]:
    """A step, a wait for the signal ``go``, and another step."""

    def program() -> Generator[Any, Any, Any]:
        for name in ("before", "after"):
            if name == "after":
                yield Ask("wait", {"kind": "signal", "name": "go"})
            begun = yield Ask("step", {"name": name, "on_doubt": "ask"})
            if begun.value["status"] == "run":
                yield Effect(lambda name=name: ledger.append(name))
                yield Ask("step/end", {"result": name}, at=0 if name == "before" else 2)
        yield Ask("complete", {"result": "fine"})

    return program


async def up(houses: Houses, program: Any = None) -> House:
    house = houses()
    if program is not None:
        house.machines.program = program
    await house.up()
    return house


async def test_the_runs_of_a_killed_server_are_taken_over(houses: Houses) -> None:
    ledger: list[str] = []
    first, second = await up(houses), await up(houses, waiting(ledger))
    run_id = await first.start(waiting(ledger))
    await first.waits(run_id, "signal")
    lost = first.server
    await first.down()
    await until(lambda: taken(second, run_id))
    assert await servers(second) == [second.server]
    await second.engine.signal(run_id, "go", None)
    assert (await second.ends(run_id)).result == "fine"
    assert ledger == ["before", "after"]
    (recovering,) = await second.entries(run_id, "run.recovering")
    assert recovering.payload["cause"] == "server-lost"
    assert lost in recovering.payload["detail"]
    assert len(await second.entries(run_id, "run.queued")) == 1
    await second.released(run_id)
    assert await owner(second, run_id) == ""
    await second.context.verify(run_id)


async def any_taken(houses: list[House], run_id: str) -> bool:
    return any(run_id in house.engine._runs for house in houses)


async def taken(house: House, run_id: str) -> bool:
    return run_id in house.engine._runs


async def test_a_server_that_was_believed_lost_writes_nothing_and_begins_anew(houses: Houses) -> None:
    """As SIGSTOP leaves it: the process is there, does nothing for some time, and then goes on where it was."""
    ledger: list[str] = []
    first, second = await up(houses), await up(houses, waiting(ledger))
    run_id = await first.start(waiting(ledger))
    await first.waits(run_id, "signal")
    lost, run = first.server, first.engine._runs[run_id]
    leases = first.context.leases
    assert leases is not None and await leases.remove(lost, None)
    with pytest.raises(LeaseLost):
        await first.context.append(run_id, [NewEntry(kind="note")], epoch=None)
    await until(lambda: anew(first, lost))
    assert run.is_let_go
    await until(lambda: any_taken([first, second], run_id))
    house = first if run_id in first.engine._runs else second
    await house.engine.signal(run_id, "go", None)
    assert (await house.ends(run_id)).result == "fine"
    assert ledger == ["before", "after"]
    assert not await house.entries(run_id, "run.failed")


async def anew(house: House, lost: str) -> bool:
    return house.server != lost and house.engine.tenure is not None and house.engine.tenure.is_held


async def test_a_server_that_starts_again_keeps_its_machines(houses: Houses) -> None:
    ledger: list[str] = []
    house = houses()
    house.settings = replace(house.settings, idle_grace_s=60.0)
    await house.up()
    run_id = await house.start(waiting(ledger))
    await house.waits(run_id, "signal")
    former = house.server
    await house.down()
    await house.up()
    assert await servers(house) == [house.server] != [former]
    await house.waits(run_id, "signal")
    await house.engine.signal(run_id, "go", None)
    await house.ends(run_id)
    assert not await house.entries(run_id, "run.recovering")
    assert house.machines.done.count("start") == 1


async def test_lost_runs_are_shared(houses: Houses) -> None:
    ledger: list[str] = []
    first = await up(houses)
    others = [await up(houses, waiting(ledger)) for _ in range(2)]
    runs = [await first.start(waiting(ledger)) for _ in range(12)]
    for run_id in runs:
        await first.reaches(run_id, RunState.WAITING, RunState.SUSPENDING, RunState.SUSPENDED)
    await first.down()
    await until(lambda: all_taken(others, runs))
    assert all(len(house.engine._runs) >= 3 for house in others)
    assert not set(others[0].engine._runs) & set(others[1].engine._runs)
    for run_id in runs:
        house = next(house for house in others if run_id in house.engine._runs)
        await house.engine.signal(run_id, "go", None)
        assert (await house.ends(run_id)).state is RunState.COMPLETED
    assert sorted(ledger) == ["after"] * 12 + ["before"] * 12


async def all_taken(houses: list[House], runs: list[str]) -> bool:
    return {run_id for house in houses for run_id in house.engine._runs} == set(runs)


async def test_a_write_is_refused_where_the_run_is_another_servers(houses: Houses) -> None:
    ledger: list[str] = []
    first, second = await up(houses), await up(houses)
    run_id = await first.start(waiting(ledger))
    await first.waits(run_id, "signal")
    with pytest.raises(LeaseLost):
        await second.context.append(run_id, [NewEntry(kind="note")], epoch=None)
    leases = second.context.leases
    assert leases is not None and not await leases.take(run_id, first.server)  # it lives


async def test_a_server_stopped_in_the_middle_of_a_transaction_holds_nobody_up(
    houses: Houses, postgres: PostgresServer
) -> None:
    ledger: list[str] = []
    first, second = await up(houses), await up(houses, waiting(ledger))
    run_id = await first.start(waiting(ledger))
    await first.waits(run_id, "signal")
    lost, connection = first.server, first.context._database._writer._connection  # type: ignore[attr-defined]
    await connection.execute("BEGIN")
    await connection.execute("SELECT 1 FROM servers WHERE server = %s FOR KEY SHARE", (lost,))
    first.context._database._writer._connection = None  # type: ignore[attr-defined]
    await first.down()
    await until(lambda: taken(second, run_id))
    await connection.close()


async def test_a_write_whose_answer_was_lost_leaves_no_run_stuck(houses: Houses) -> None:
    ledger: list[str] = []
    house = await up(houses)
    run_id = await house.start(waiting(ledger))
    await house.waits(run_id, "signal")
    run, append = house.engine._runs[run_id], house.context.append

    async def cut(*args: Any, **named: Any) -> Any:
        await append(*args, **named)
        house.context.append = append  # type: ignore[method-assign]
        raise Unavailable("the connection broke in the middle of a commit")

    house.context.append = cut  # type: ignore[method-assign]
    with pytest.raises(Unavailable):
        await run.signal("go", 1, "first")
    await run.signal("go", 1, "first")
    assert (await house.ends(run_id)).result == "fine"
    assert len(await house.entries(run_id, "signal")) == 1


async def test_what_was_written_before_a_stop_is_not_acted_on_after_it(houses: Houses) -> None:
    ledger: list[str] = []
    house = await up(houses)
    run_id = await house.start(waiting(ledger))
    await house.waits(run_id, "signal")
    leases = house.context.leases
    assert leases is not None and leases.is_sure
    lasts_s = leases._lasts_s  # type: ignore[attr-defined]
    leases._lasts_s, leases._sure_until = -1.0, 0.0  # type: ignore[attr-defined] # no beat comes in between
    with pytest.raises(LeaseLost):
        await house.context.append(run_id, [NewEntry(kind="note", payload="late")], epoch=None)
    assert len(await house.entries(run_id, "note")) == 1  # it is done, and nobody goes on from it
    leases._lasts_s = lasts_s  # type: ignore[attr-defined]
    await until(lambda: sure(house))  # with its next beat
    await house.context.append(run_id, [NewEntry(kind="note", payload="sure")], epoch=None)


async def sure(house: House) -> bool:
    return house.context.leases is not None and house.context.leases.is_sure


async def test_a_program_signals_a_run_at_another_server(houses: Houses) -> None:
    asked: list[tuple[str, str]] = []

    def sends(run_id: str) -> Callable[[], Generator[Any, Any, Any]]:
        def program() -> Generator[Any, Any, Any]:
            said = yield Ask("signal", {"run": run_id, "name": "go", "value": 7})
            yield Ask("complete", {"result": said.value})

        return program

    def waits() -> Generator[Any, Any, Any]:
        said = yield Ask("wait", {"kind": "signal", "name": "go"})
        yield Ask("complete", {"result": said.value["value"]})

    first, second = await up(houses), await up(houses)
    waiting_id = await second.start(waits)
    await second.waits(waiting_id, "signal")

    class Others:
        async def post(self, run_id: str, part: str, body: dict[str, Any]) -> None:
            asked.append((run_id, part))
            await second.engine.signal(run_id, body["name"], body["value"], body["id"])

        async def changes(self, run_id: str) -> list[Any]:
            raise AssertionError(run_id)

    first.engine.elsewhere = Others()
    sending_id = await first.start(sends(waiting_id))
    assert (await first.ends(sending_id)).result == {"run_id": waiting_id}
    assert (await second.ends(waiting_id)).result == 7
    assert asked == [(waiting_id, "signal")]


async def with_a_child(house: House) -> tuple[str, str]:
    """A run that waits for its child, which waits for a signal."""

    def program() -> Generator[Any, Any, Any]:
        begun = yield Ask("begin", {})
        if begun.value["agent"].endswith(":main"):
            yield Ask("wait", {"kind": "child", "function": "child"})
        yield Ask("wait", {"kind": "signal", "name": "go"})

    run_id = await house.start(program)
    await house.reaches(run_id, RunState.SUSPENDED)
    (child,) = [wait["child"] for wait in (await house.engine.info(run_id)).waits]
    await house.appears(child)
    return run_id, child


@pytest.mark.parametrize("is_forced", [False, True])
async def test_a_child_is_cancelled_with_its_parent(houses: Houses, is_forced: bool) -> None:
    house = await up(houses)
    run_id, child = await with_a_child(house)
    await house.reaches(child, RunState.SUSPENDED)
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def remove() -> None:
        reached.set()
        await go_on.wait()  # it takes long to be rid of the parent's machine

    house.machines.before["remove"] = remove
    await house.engine.cancel(run_id, clean_up_s=0 if is_forced else 0.1)
    await reached.wait()
    assert (await house.ends(child)).state is RunState.CANCELLED
    go_on.set()


async def test_a_child_that_a_fork_waits_for_is_found_to_be_awaited_without_a_look_at_all_runs(houses: Houses) -> None:
    house = await up(houses)
    run_id, child = await with_a_child(house)
    (fork,) = await house.engine.fork(run_id)
    (deeper,) = await house.engine.fork(fork.id)
    children, asked, heads = house.engine._children, list[Any](), house.context.heads

    async def counted(**what: Any) -> Any:
        asked.append(what)
        return await heads(**what)

    house.context.heads = counted  # type: ignore[method-assign, assignment]
    for ended in (run_id, fork.id):
        assert await children._is_awaited(child)
        await house.engine.cancel(ended, clean_up_s=0)
        await house.ends(ended)
    assert await children._is_awaited(child)
    assert [what for what in asked if "forks_of" not in what and "ids" not in what] == []
    await house.engine.cancel(deeper.id, clean_up_s=0)
    assert (await house.ends(child)).state is RunState.CANCELLED
