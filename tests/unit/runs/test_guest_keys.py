"""The key that programs of a run have for a provider's: shown by the unmodified SDKs, through the run's door."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import anthropic
import openai
import pytest

from perdure.model import RunState
from perdure.testing import speeches
from perdure.testing.guestdoor import AWAKE, MESSAGES, guest_door, sdks, waits
from perdure.testing.house import House
from perdure.testing.scripted import ScriptedProvider


@pytest.fixture
async def provider() -> AsyncIterator[ScriptedProvider]:
    made = ScriptedProvider()
    await made.open()
    made.acts = [made.says("by night")]
    yield made
    await made.close()


@pytest.fixture
async def house(tmp_path: Path, provider: ScriptedProvider) -> AsyncIterator[House]:
    made = House(tmp_path, provider.url)
    await made.up()
    yield made
    await made.down()
    await made.machines.close()


async def started(house: House) -> tuple[str, str]:
    """A run that stays warm, and the key that its programs have."""
    run_id = await house.start(waits, policy=AWAKE)
    await house.waits(run_id, "signal")
    plan = house.machines.plans[-1]
    assert plan.run_id == run_id and plan.env["OPENAI_API_KEY"] == plan.env["ANTHROPIC_API_KEY"]
    return run_id, plan.env["OPENAI_API_KEY"]


async def test_the_key_of_another_run_is_refused_in_the_words_of_who_asks(
    house: House, provider: ScriptedProvider
) -> None:
    run_id, _ = await started(house)
    _, of_another = await started(house)
    async with guest_door(house, run_id) as door, sdks(door, of_another) as (of_openai, of_anthropic):
        with pytest.raises(openai.AuthenticationError, match="key of another run"):
            await of_openai.chat.completions.create(model="any", messages=MESSAGES)
        with pytest.raises(anthropic.AuthenticationError, match="key of another run"):
            await of_anthropic.messages.create(model="any", max_tokens=9, messages=MESSAGES)
        assert door.asked == 2 and not provider.asked  # neither SDK asks again
    assert not await house.entries(run_id, "model.")


@pytest.mark.parametrize("key", ["", "placeholder", "sk-of-somebody"])
async def test_its_own_key_and_any_other_are_answered_and_never_handed_on(
    house: House, provider: ScriptedProvider, key: str
) -> None:
    run_id, own = await started(house)
    async with guest_door(house, run_id) as door, sdks(door, key or own) as (of_openai, of_anthropic):
        answer = await of_openai.chat.completions.create(model="any", messages=MESSAGES)
        assert answer.choices[0].message.content == "by night"
        provider.acts = [provider.says(speeches.message("by day"))]
        told = await of_anthropic.messages.create(model="any", max_tokens=9, messages=MESSAGES)
        assert told.usage.output_tokens == 2
    assert len(provider.asked) == 2
    for headers in provider.headers:
        assert (key or own) not in str(headers) and "x-api-key" not in headers and "authorization" not in headers


async def test_a_fork_has_the_key_of_its_origin_and_a_restart_changes_none(house: House) -> None:
    run_id, own = await started(house)
    await house.engine.checkpoint(run_id)
    (fork,) = await house.engine.fork(run_id)
    await house.reaches(fork.id, RunState.WAITING)
    await house.restart()
    async with guest_door(house, fork.id) as door, sdks(door, own) as (of_openai, _):
        answer = await of_openai.chat.completions.create(model="any", messages=MESSAGES)
        assert answer.choices[0].message.content == "by night"


async def test_who_starts_a_run_may_name_another_key(house: House) -> None:
    run_id = await house.start(waits, policy=AWAKE, env={"OPENAI_API_KEY": "mine"})
    await house.waits(run_id, "signal")
    env = house.machines.plans[-1].env
    assert env["OPENAI_API_KEY"] == "mine" and env["ANTHROPIC_API_KEY"].startswith("perdure-run-")
