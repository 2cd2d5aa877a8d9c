"""What a run may spend on models: held before a provider is asked, told so that no SDK asks again, and raised."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import msgspec
import openai
import pytest

from perdure.agent import Context
from perdure.agent.calls import Lane
from perdure.agent.door import Door
from perdure.errors import InvalidValue, OverBudget
from perdure.gateway.prices import Price, Prices
from perdure.model import Budget
from perdure.runs.budgets import Budgets
from perdure.testing import speeches
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


async def started(house: House, **budget: float) -> str:
    run_id = await house.start(waits, policy=AWAKE, budget=msgspec.convert(budget, Budget))
    await house.waits(run_id, "signal")
    return run_id


async def chat(door: GuestDoor, **more: Any) -> str:
    async with sdks(door) as (of_openai, _):
        asked: dict[str, Any] = {"model": "real-model", "messages": MESSAGES, **more}
        answer = await of_openai.chat.completions.create(**asked)
        return str(answer.choices[0].message.content)


@pytest.mark.parametrize(
    ("budget", "told"),
    [({"calls": 2}, "2 of 2 calls"), ({"tokens": 10}, "18 of 10 tokens"), ({"usd": 10e-6}, r"\$1.8e-05 of \$1e-05")],
)
async def test_it_ends_with_an_error_of_each_sdk_that_is_not_asked_again(
    house: House, provider: ScriptedProvider, budget: dict[str, float], told: str
) -> None:
    run_id = await started(house, **budget)
    async with guest_door(house, run_id) as door, sdks(door) as (of_openai, of_anthropic):
        assert await chat(door) == await chat(door) == "by night"
        with pytest.raises(openai.APIStatusError, match=told) as refused:
            await of_openai.chat.completions.create(model="real-model", messages=MESSAGES)
        assert refused.value.status_code == 402 and refused.value.code == "over-budget"
        with pytest.raises(openai.APIStatusError, match=told):
            await of_openai.responses.create(model="real-model", input="hi", stream=True)
        with pytest.raises(anthropic.APIStatusError, match=f"{told}.*perdure budget {run_id} --set") as told_so:
            await of_anthropic.messages.create(model="real-model", max_tokens=9, messages=MESSAGES)
        assert told_so.value.status_code == 402 and "billing_error" in str(told_so.value.body)
        assert door.asked == 5 and len(provider.asked) == 2
        intent, aborted = (await house.entries(run_id, "model."))[-2:]
        assert (intent.kind, aborted.kind) == ("model.intent", "model.aborted") and aborted.payload["unasked"]
        info = await house.engine.info(run_id)
        assert (info.spent.calls, info.spent.tokens, info.budget) == (2, 18, msgspec.convert(budget, Budget))


async def test_what_is_told_is_told_again_and_more_is_given_from_the_next_call_on(
    house: House, provider: ScriptedProvider
) -> None:
    run_id = await started(house, calls=1)
    async with guest_door(house, run_id) as door:
        await chat(door)
        with pytest.raises(openai.APIStatusError, match="1 of 1 calls"):
            await chat(door)
        info = await house.engine.set_budget(run_id, Budget(calls=2, usd=1.0))
        assert info.budget == Budget(calls=2, usd=1.0)
        door.ordinals = itertools.count()  # as after a restore
        assert await chat(door) == "by night"
        with pytest.raises(openai.APIStatusError, match="1 of 1 calls"):
            await chat(door)
        assert len(provider.asked) == 1
        assert await chat(door) == "by night"
        await house.restart()
        with pytest.raises(openai.APIStatusError, match="2 of 2 calls"):
            await chat(door)
    assert [e.payload for e in await house.entries(run_id, "budget")] == [{"budget": {"calls": 2, "usd": 1.0}}]


async def test_calls_in_flight_count_and_who_may_be_too_many_waits_for_their_end(
    house: House, provider: ScriptedProvider
) -> None:
    run_id = await started(house, calls=2)
    provider.acts = [provider.streams(speeches.chat_events("by ", "night"), hold_after=1)]
    async with guest_door(house, run_id) as door:
        held = [asyncio.create_task(_streamed(door)) for _ in range(2)]
        await _until_asked(provider, 2)
        third = asyncio.create_task(chat(door))
        await _until_in_flight(house, 3)
        provider.go.set()
        assert await asyncio.gather(*held) == ["by night"] * 2
        with pytest.raises(openai.APIStatusError, match="2 of 2 calls"):
            await third
        assert len(provider.asked) == 2


async def test_a_call_whose_end_is_being_written_counts_once(
    house: House, provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = await started(house, calls=2)
    log, written, go_on = house.context, asyncio.Event(), asyncio.Event()
    real = log.append

    async def append(run_id: str, new: Any, **how: Any) -> Any:
        done = await real(run_id, new, **how)
        if new[-1].kind == "model.committed" and not written.is_set():
            written.set()
            await go_on.wait()  # who wrote it has not heard that it is there
        return done

    monkeypatch.setattr(log, "append", append)
    async with guest_door(house, run_id) as door:
        first = asyncio.create_task(chat(door))
        await written.wait()
        second = asyncio.create_task(chat(door))
        await _until_in_flight(house, 2)
        go_on.set()
        assert await asyncio.gather(first, second) == ["by night"] * 2


async def test_who_may_not_be_able_to_pay_waits_for_those_in_flight(house: House, provider: ScriptedProvider) -> None:
    """And is asked, or refused, by what they have really cost."""
    run_id = await started(house, tokens=12)
    provider.acts = [
        provider.streams(speeches.chat_events("owl"), hold_after=1),  # costs 4 in the end
        provider.says("by night"),  # and 9
    ]
    async with guest_door(house, run_id) as door:
        first = asyncio.create_task(_streamed(door, max_tokens=5000))
        await _until_asked(provider, 1)
        second, third = (asyncio.create_task(chat(door)) for _ in range(2))
        await _until_in_flight(house, 3)
        assert len(provider.asked) == 1  # held back by a guess
        provider.go.set()
        assert await first == "owl"
        told = await asyncio.gather(second, third, return_exceptions=True)
        assert "by night" in told
        (refused,) = [one for one in told if isinstance(one, Exception)]
        assert "13 of 12 tokens" in str(refused) and len(provider.asked) == 2


async def test_a_budget_in_dollars_needs_a_price(house: House, provider: ScriptedProvider) -> None:
    run_id = await started(house, usd=5.0)
    async with guest_door(house, run_id) as door:
        with pytest.raises(openai.APIStatusError, match="the price of 'owl-1' is not known"):
            await chat(door, model="owl-1")
        assert not provider.asked and await chat(door) == "by night"


async def test_what_a_starter_does_not_say_is_said_by_the_server(house: House) -> None:
    await house.down()
    budgets = Budgets(Budget(calls=7, usd=1.0), {"ma*": Budget(usd=2.0), "*.py:other": Budget(calls=1)})
    house.settings = dataclasses.replace(house.settings, budgets=budgets)
    await house.up()
    run_id = await started(house)
    assert (await house.engine.info(run_id)).budget == Budget(calls=7, usd=2.0)
    run_id = await started(house, calls=0, tokens=5)
    assert (await house.engine.info(run_id)).budget == Budget(calls=0, usd=2.0, tokens=5)
    assert budgets.of(["other", "a.py:other"]) == Budget(calls=1, usd=1.0) and budgets.of(["sh"]).calls == 7


@pytest.mark.parametrize("is_stream", [False, True])
async def test_an_agent_hears_it_as_an_error_of_its_own(
    house: House, monkeypatch: pytest.MonkeyPatch, is_stream: bool
) -> None:
    run_id = await started(house, calls=1)
    async with guest_door(house, run_id) as door:
        await chat(door)
        monkeypatch.setenv("PERDURE_DOOR", door.url.removeprefix("http://"))

        def asks() -> Any:
            return Context(run_id, Lane("main"), Door()).chat("hi", on_delta=print if is_stream else None)

        with pytest.raises(OverBudget, match="1 of 1 calls"):
            await asyncio.to_thread(asks)


async def test_it_is_changed_after_the_end_too(house: House) -> None:
    """For a run that is to be taken back to before it had spent all."""
    run_id = await started(house, calls=1)
    await house.engine.signal(run_id, "go", None)
    await house.ends(run_id)
    await house.released(run_id)
    assert (await house.engine.set_budget(run_id, Budget(calls=5))).budget == Budget(calls=5)


async def test_a_wrong_budget_is_refused(house: House) -> None:
    with pytest.raises(InvalidValue, match="budget: calls is -1"):
        await started(house, calls=-1)
    run_id = await started(house)
    with pytest.raises(InvalidValue, match=r"budget: usd is -0\.5"):
        await house.engine.set_budget(run_id, Budget(usd=-0.5))


async def _streamed(door: GuestDoor, **more: Any) -> str:
    async with sdks(door) as (of_openai, _):
        asked: dict[str, Any] = {"model": "real-model", "messages": MESSAGES, "stream": True, **more}
        stream = await of_openai.chat.completions.create(**asked)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])


async def _until_asked(provider: ScriptedProvider, times: int) -> None:
    async with asyncio.timeout(10):
        while len(provider.asked) < times:  # noqa: ASYNC110 - nobody is told of that
            await asyncio.sleep(0.01)


async def _until_in_flight(house: House, calls: int) -> None:
    async with asyncio.timeout(10):
        while house.gateway.in_flight < calls:  # noqa: ASYNC110 - nobody is told of that
            await asyncio.sleep(0.01)
