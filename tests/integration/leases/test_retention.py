"""Logs that several servers on one PostgreSQL drop, and what is left of them then."""

from __future__ import annotations

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


async def test_one_server_sweeps_what_another_dropped(
    houses: Callable[[], House], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "PAUSE_S", 0.0)
    both = [houses(), houses()]
    for house in both:
        await house.up()
    sweeper, other = sorted(both, key=lambda house: house.context.leases.server)  # type: ignore[union-attr]  # PostgreSQL has leases
    swept: list[str] = []
    counted(sweeper, "sweeper", swept)
    counted(other, "other", swept)
    clock = FakeClock()
    looks = [Retention(house.context, clock, keep_s=DAY_S) for house in (other, sweeper)]
    run_id = await other.start(ends)
    await other.ends(run_id)
    await other.released(run_id)
    for look in looks:
        await look._look()
    clock.move(2 * DAY_S)
    await looks[0]._look()
    assert (await other.context.head(run_id)).pruned and swept == []
    await looks[1]._look()
    assert swept == ["sweeper"]
    clock.move(SWEEP_S)
    for look in looks:
        await look._look()
    assert swept == ["sweeper", "sweeper"]
