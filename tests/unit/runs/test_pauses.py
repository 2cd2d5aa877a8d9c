"""Machines that are suspended in the middle of a model's answer: they go on hearing it, and it is asked for once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import MachineFailed
from perdure.model import RunState
from perdure.runs.policy import Policy
from perdure.testing import speeches
from perdure.testing.house import House
from perdure.testing.machines import Ask
from perdure.testing.scripted import ScriptedProvider

pytestmark = pytest.mark.timeout(180)
DEADLINE_S = 20.0
QUICK = Policy(think_grace_s=0.01)
MESSAGES = [{"role": "user", "content": "hi"}]
ASKED: dict[str, tuple[dict[str, Any], list[bytes]]] = {
    "/v1/chat/completions": ({"messages": MESSAGES}, speeches.chat_events("by ", "night")),
    "/v1/responses": ({"input": "hi"}, speeches.response_events("by ", "night")),
    "/v1/messages": ({"max_tokens": 9, "messages": MESSAGES}, speeches.message_events("by ", "night")),
}
CHAT, EVENTS = "/v1/chat/completions", ASKED["/v1/chat/completions"][1]


@pytest.fixture
async def provider() -> AsyncIterator[ScriptedProvider]:
    made = ScriptedProvider()
    await made.open()
    yield made
    await made.close()


@pytest.fixture
async def house(tmp_path: Path, provider: ScriptedProvider) -> AsyncIterator[House]:
    made = House(tmp_path, provider.url)
    await made.up()
    yield made
    await made.down()


def asks(path: str) -> Generator[Any, Any, Any]:
    said = yield Ask(path, {**ASKED[path][0], "model": "m", "stream": True})
    yield Ask("complete", {"result": said.value})


async def begun(
    house: House, provider: ScriptedProvider, path: str, hold_after: int, policy: Policy = QUICK, **changes: Any
) -> str:
    """A run that hears so many events, and then nothing until ``provider.go``."""
    provider.go, provider.reached = asyncio.Event(), asyncio.Event()
    provider.acts = [provider.streams(ASKED[path][1], hold_after=hold_after)]
    return await house.start(lambda: asks(path), policy=policy, **changes)


@pytest.mark.parametrize("path", ASKED)
async def test_a_sleep_at_every_event(house: House, provider: ScriptedProvider, path: str) -> None:
    events = ASKED[path][1]
    for at in range(len(events)):
        asked = len(provider.asked)
        run_id = await begun(house, provider, path, at)
        info = await house.reaches(run_id, RunState.SUSPENDED)
        assert provider.reached.is_set() and (info.suspends, info.waits) == (1, [])
        provider.go.set()
        ended = await house.ends(run_id)
        assert (ended.state, ended.result) == (RunState.COMPLETED, b"".join(events).decode()), at
        assert (ended.turns_asked, ended.turns_replayed, ended.recoveries) == (1, 0, 0)
        assert len(provider.asked) - asked == 1 and ended.suspended_s > 0


async def test_what_comes_while_the_machine_is_captured_is_not_lost(house: House, provider: ScriptedProvider) -> None:
    async def come() -> None:
        provider.go.set()
        turn = next(iter(house.gateway._turns.values()), None)
        if turn is not None and turn.task is not None:
            await asyncio.wait({turn.task})  # all of it is there

    house.machines.before["suspend"] = come
    run_id = await begun(house, provider, CHAT, 2)
    ended = await house.ends(run_id)
    assert (ended.result, ended.suspends, len(provider.asked)) == (b"".join(EVENTS).decode(), 1, 1)


async def test_a_machine_that_cannot_be_captured_hears_the_rest(house: House, provider: ScriptedProvider) -> None:
    async def fail() -> None:
        provider.go.set()
        raise MachineFailed("no space in the store")

    house.machines.before["suspend"] = fail
    run_id = await begun(house, provider, CHAT, 2)
    ended = await house.ends(run_id)
    assert (ended.result, ended.suspends, len(provider.asked)) == (b"".join(EVENTS).decode(), 0, 1)


async def test_no_checkpoint_is_made_of_half_an_answer(house: House, provider: ScriptedProvider) -> None:
    """A server that ends takes the rest of it: nothing older would be left to go on from."""
    policy = Policy(think_grace_s=1e9, checkpoint_s=0.05)
    provider.acts = [provider.streams(EVENTS, hold_after=2)]
    run_id = await house.start(lambda: asks(CHAT), policy=policy)
    run = house.engine._runs[run_id]
    async with asyncio.timeout(DEADLINE_S):
        await provider.reached.wait()
    done = house.machines.done.count("checkpoint")
    assert await run.until(lambda: bool(run.activity.pausing), DEADLINE_S)
    assert not await run.until(lambda: house.machines.done.count("checkpoint") > done, 0.3)
    provider.go.set()
    assert (await house.ends(run_id)).result == b"".join(EVENTS).decode()


async def test_a_server_that_ends_meanwhile_is_told_of(house: House, provider: ScriptedProvider) -> None:
    """The rest of the answer is gone with it; the program hears so as from a provider, and may ask again."""
    policy = Policy(think_grace_s=0.5)  # it is to have heard the first two: without any it would be asked for anew
    run_id = await begun(house, provider, CHAT, 2, policy)
    await house.reaches(run_id, RunState.SUSPENDED)
    await house.restart()
    ended = await house.ends(run_id)
    assert str(ended.result).startswith(b"".join(EVENTS[:2]).decode()) and '"stream-lost"' in str(ended.result)
    assert len(provider.asked) == 1
