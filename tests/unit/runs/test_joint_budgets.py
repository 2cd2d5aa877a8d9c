"""What all runs of some agents may spend together: held over runs, restarts and servers, and begun anew each period."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import openai
import pytest

from perdure.gateway.prices import Price, Prices
from perdure.model import Budget, JointBudget, Spent
from perdure.runs.budgets import Budgets
from perdure.testing import speeches
from perdure.testing.clock import FakeClock
from perdure.testing.guestdoor import AWAKE, MESSAGES, GuestDoor, guest_door, sdks, waits
from perdure.testing.house import House
from perdure.testing.scripted import ScriptedProvider


@pytest.fixture
async def provider() -> AsyncIterator[ScriptedProvider]:
    made = ScriptedProvider()
    await made.open()
    made.acts = [made.says("by night")]  # nine tokens
    yield made
    await made.close()


@pytest.fixture
async def house(tmp_path: Path, provider: ScriptedProvider) -> AsyncIterator[House]:
    made = House(tmp_path, provider.url)
    made.prices = Prices({"real-*": Price(1.0, 1.0, 1.0, 1.0)})
    await made.up()
    yield made
    await made.down()
    await made.machines.close()


async def may(house: House, *joint: JointBudget) -> None:
    """From now on."""
    await house.down()
    house.settings = dataclasses.replace(house.settings, budgets=Budgets(joint=joint))
    await house.up()


def calls(most: int, name: str = "ma*", **more: Any) -> JointBudget:
    return JointBudget(name=name, budget=Budget(calls=most), **more)


async def started(house: House, **changes: Any) -> str:
    run_id = await house.start(waits, policy=AWAKE, **changes)
    await house.waits(run_id, "signal")
    return run_id


async def chat(door: GuestDoor, **more: Any) -> str:
    async with sdks(door) as (of_openai, _):
        asked: dict[str, Any] = {"model": "real-model", "messages": MESSAGES, **more}
        answer = await of_openai.chat.completions.create(**asked)
        return str(answer.choices[0].message.content)


async def spent(house: House) -> list[tuple[str, int]]:
    return [(one.name, one.spent.calls) for one in await house.engine.joint_budgets.all()]


@pytest.mark.parametrize(
    ("budget", "told"),
    [
        ({"calls": 2}, "2 of 2 calls"),
        ({"tokens": 10}, "18 of 10 tokens"),
        ({"usd": 10e-6}, r"\$1.8e-05 of \$1e-05"),
    ],
)
async def test_all_runs_of_an_agent_have_it_together(
    house: House, provider: ScriptedProvider, budget: dict[str, Any], told: str
) -> None:
    await may(house, JointBudget(name="*.py:main", budget=Budget(**budget)))
    for _ in range(2):
        async with guest_door(house, await started(house)) as door:
            assert await chat(door) == "by night"
    run_id = await started(house, budget=Budget(calls=0, tokens=0, usd=0))  # which a starter cannot lift
    async with guest_door(house, run_id) as door:
        hint = rf'Raise {next(iter(budget))} of \[budgets."\*.py:main".all\]'
        with pytest.raises(openai.APIStatusError, match=f"all runs of .* together have .*: {told} .{hint}") as refused:
            await chat(door)
        assert (refused.value.status_code, refused.value.code) == (402, "over-budget")
    async with guest_door(house, await started(house, function="other")) as door:
        assert await chat(door) == "by night"
    assert len(provider.asked) == 3


async def test_each_that_fits_counts_and_a_run_has_its_own_as_well(house: House, provider: ScriptedProvider) -> None:
    await may(house, calls(3, "*"), calls(2, "main"), calls(9, "owl"))
    run_id = await started(house, budget=Budget(calls=1))
    async with guest_door(house, run_id) as door:
        await chat(door)
        with pytest.raises(openai.APIStatusError, match="the run has spent what it may on models: 1 of 1 calls"):
            await chat(door)
    async with guest_door(house, await started(house)) as door:
        await chat(door)
        with pytest.raises(openai.APIStatusError, match="all runs of 'main' together"):
            await chat(door)
    assert await spent(house) == [("*", 2), ("main", 2), ("owl", 0)] and len(provider.asked) == 2


async def test_it_holds_after_a_restart_and_when_runs_are_pruned(house: House) -> None:
    await may(house, calls(1))
    run_id = await started(house)
    async with guest_door(house, run_id) as door:
        await chat(door)
    await house.engine.signal(run_id, "go", None)
    await house.ends(run_id)
    await house.released(run_id)
    await house.context.prune(run_id)
    await house.restart()
    async with guest_door(house, await started(house)) as door:
        with pytest.raises(openai.APIStatusError, match="1 of 1 calls"):
            await chat(door)
    assert await spent(house) == [("ma*", 1)]


async def test_many_calls_at_once_of_many_runs_do_not_slip_through(house: House, provider: ScriptedProvider) -> None:
    await may(house, calls(5))
    runs = [await started(house) for _ in range(4)]

    async def asks(run_id: str) -> list[str | BaseException]:
        async with guest_door(house, run_id) as door:
            return await asyncio.gather(*(chat(door) for _ in range(5)), return_exceptions=True)

    told = [one for of_run in await asyncio.gather(*map(asks, runs)) for one in of_run]
    refused = [str(one) for one in told if one != "by night"]
    assert len(refused) == 15 and all("5 of 5 calls" in one for one in refused)
    assert len(provider.asked) == 5 and await spent(house) == [("ma*", 5)]


async def test_a_call_that_begins_and_ends_while_the_log_is_asked_counts(
    house: House, provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    await may(house, calls(1))
    first, second = [await started(house) for _ in range(2)]
    real, asked, go_on = house.context.spent_jointly, asyncio.Event(), asyncio.Event()

    async def spent_jointly(budget: str, period: str) -> Spent:
        found = await real(budget, period)
        if not asked.is_set():
            asked.set()
            await go_on.wait()
        return found

    monkeypatch.setattr(house.context, "spent_jointly", spent_jointly)
    async with guest_door(house, first) as door, guest_door(house, second) as other:
        slow = asyncio.create_task(chat(door))
        await asked.wait()
        assert await chat(other) == "by night"
        go_on.set()
        with pytest.raises(openai.APIStatusError, match="1 of 1 calls"):
            await slow
    assert len(provider.asked) == 1


async def test_who_may_not_be_able_to_pay_waits_for_other_runs(house: House, provider: ScriptedProvider) -> None:
    await may(house, JointBudget(name="main", budget=Budget(tokens=12)))
    provider.acts = [provider.streams(speeches.chat_events("owl"), hold_after=1), provider.says("by night")]
    first, second = [await started(house) for _ in range(2)]
    async with guest_door(house, first) as door, guest_door(house, second) as other:
        held = asyncio.create_task(_streamed(door, max_tokens=5000))  # costs 4 in the end
        await _until(lambda: len(provider.asked) == 1)
        waiting = asyncio.create_task(chat(other))
        await _until(lambda: house.gateway.in_flight == 2)
        assert len(provider.asked) == 1 and not waiting.done()
        provider.go.set()
        assert await held == "owl" and await waiting == "by night"
        with pytest.raises(openai.APIStatusError, match="13 of 12 tokens"):
            await chat(door)


async def test_one_begins_anew_each_day_and_one_each_month(house: House) -> None:
    clock = await house.at(FakeClock())
    clock._wall = datetime(2026, 12, 30, 23, 59, 0, tzinfo=UTC).timestamp()
    await may(house, calls(1, "main", per="day"), calls(2, "*", per="month"))
    until = [datetime.fromtimestamp(one.ends or 0, UTC) for one in await house.engine.joint_budgets.all()]
    assert until == [datetime(2026, 12, 31, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)]
    async with guest_door(house, await started(house)) as door:
        await chat(door)
        with pytest.raises(
            openai.APIStatusError, match=r"in 2026-12-30 \(UTC\): 1 of 1 calls .It begins anew at 2026-12-31"
        ):
            await chat(door)
        clock._wall += 60
        await chat(door)
        assert await spent(house) == [("main", 1), ("*", 2)]
        clock._wall += 86_399
        with pytest.raises(openai.APIStatusError, match=r"1 of 1 calls .It begins anew at 2027-01-01 00:00 UTC"):
            await chat(door)
        clock._wall += 1
        assert await spent(house) == [("main", 0), ("*", 0)]
        assert await chat(door) == "by night"


async def test_one_in_dollars_needs_a_price(house: House, provider: ScriptedProvider) -> None:
    await may(house, JointBudget(name="main", budget=Budget(usd=5)))
    async with guest_door(house, await started(house)) as door:
        with pytest.raises(openai.APIStatusError, match=r"all runs of 'main' .* the price of 'owl-1' is not known"):
            await chat(door, model="owl-1")
        assert not provider.asked and await chat(door) == "by night"


async def test_without_one_nothing_is_added_up(house: House) -> None:
    async with guest_door(house, await started(house)) as door:
        await chat(door)
    assert await spent(house) == []
    await may(house, calls(1))
    assert await spent(house) == [("ma*", 0)]  # it counts from when it is there


@pytest.mark.parametrize(
    ("per", "now", "period", "ends"),
    [
        ("", (2026, 2, 3, 4), "", None),
        ("day", (2026, 2, 28, 23), "2026-02-28", (2026, 3, 1)),
        ("month", (2026, 1, 31, 5), "2026-01", (2026, 2, 1)),
        ("month", (2026, 12, 31, 5), "2026-12", (2027, 1, 1)),
    ],
)
def test_periods_are_days_and_months_of_utc(
    per: Any, now: tuple[int, ...], period: str, ends: tuple[int, int, int] | None
) -> None:
    one, at = calls(1, per=per), datetime(*now, tzinfo=UTC).timestamp()  # type: ignore[misc]  # numbers
    assert one.period(at) == period
    assert one.ends_at(at) == (ends and datetime(*ends, tzinfo=UTC).timestamp())


async def _streamed(door: GuestDoor, **more: Any) -> str:
    async with sdks(door) as (of_openai, _):
        asked: dict[str, Any] = {"model": "real-model", "messages": MESSAGES, "stream": True, **more}
        stream = await of_openai.chat.completions.create(**asked)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])


async def _until(is_so: Any) -> None:
    async with asyncio.timeout(10):
        while not is_so():  # noqa: ASYNC110 - nobody is told of that
            await asyncio.sleep(0.01)
