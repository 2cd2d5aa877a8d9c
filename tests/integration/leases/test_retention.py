"""Logs that several servers on one PostgreSQL drop, and what is left of them then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any

import pytest

from perdure.runs import retention
from perdure.runs.retention import SWEEP_S, Retention
from perdure.testing.clock import FakeClock
from perdure.testing.house import House
from perdure.testing.machines import Ask

DAY_S = 86400.0


def ends() -> Generator[Any, Any, Any]:
    yield Ask("complete", {"result": 1})


def counted(house: House, name: str, swept: list[str]) -> None:
    async def sweep() -> Any:
        swept.append(name)
        return await type(house.context).sweep(house.context)

    house.context.sweep = sweep  # type: ignore[method-assign]  # counted, and done


class Days:
    """A clock of two servers and of their database."""

    def __init__(self, both: list[House], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(retention, "PAUSE_S", 0.0)
        self.clock = FakeClock()

        async def time() -> float:
            return self.clock.time()

        for house in both:
            monkeypatch.setattr(house.context.leases, "time", time)

    def look_of(self, house: House) -> Retention:
        return Retention(house.context, self.clock, keep_s=DAY_S)


@pytest.fixture
async def both(houses: Callable[[], House]) -> list[House]:
    """By the ids of their leases."""
    made = [houses(), houses()]
    for house in made:
        await house.up()
    return sorted(made, key=lambda house: house.server)


async def test_one_server_sweeps_what_another_dropped(both: list[House], monkeypatch: pytest.MonkeyPatch) -> None:
    days, swept = Days(both, monkeypatch), list[str]()
    looks = [days.look_of(house) for house in both]
    for house, name in zip(both, ("first", "second"), strict=True):
        counted(house, name, swept)
    run_id = await both[1].start(ends)
    await both[1].ends(run_id)
    await both[1].released(run_id)
    await asyncio.gather(*[look._look() for look in looks])
    assert len(swept) == 1
    days.clock.move(2 * DAY_S)
    await looks[1]._look()
    assert (await both[1].context.head(run_id)).pruned and swept[1:] == ["second"]
    await looks[0]._look()
    await days.look_of(both[1])._look()  # it was started again
    days.clock.move(SWEEP_S - 1)
    for look in looks:
        await look._look()
    assert swept[1:] == ["second"]
    days.clock.move(1)
    for look in looks:
        await look._look()
    assert swept[1:] == ["second", "first"]


async def test_where_the_lowest_id_keeps_logs_another_sweeps(
    both: list[House], monkeypatch: pytest.MonkeyPatch
) -> None:
    """[retention] is off at the server with the lowest id."""
    days, swept = Days(both, monkeypatch), list[str]()
    counted(both[1], "second", swept)
    look = days.look_of(both[1])
    for _ in range(3):
        await look._look()
        days.clock.move(SWEEP_S)
    assert swept == ["second"] * 3
