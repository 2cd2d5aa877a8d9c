"""Kill -9 of the machine, and of the server, at every event of a streamed turn, in every dialect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator
from pathlib import Path
from typing import Any

import pytest

from perdure.model import RunState
from perdure.testing import speeches
from perdure.testing.house import House
from perdure.testing.machines import Ask
from perdure.testing.scripted import ScriptedProvider

pytestmark = pytest.mark.timeout(180)
MESSAGES = [{"role": "user", "content": "hi"}]
ASKED: dict[str, tuple[dict[str, Any], list[bytes]]] = {
    "/v1/chat/completions": ({"messages": MESSAGES}, speeches.chat_events("by ", "night")),
    "/v1/responses": ({"input": "hi"}, speeches.response_events("by ", "night")),
    "/v1/messages": ({"max_tokens": 9, "messages": MESSAGES}, speeches.message_events("by ", "night")),
}


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


@pytest.mark.parametrize("victim", ["machine", "server"])
@pytest.mark.parametrize("path", ASKED)
async def test_a_death_at_every_event(house: House, provider: ScriptedProvider, path: str, victim: str) -> None:
    """The program ends with the same text, and each answered turn was asked for once."""
    body, events = ASKED[path]
    whole = b"".join(events).decode()

    def program() -> Generator[Any, Any, Any]:
        while True:
            said = yield Ask(path, {**body, "model": "m", "stream": True})
            if '"stream-lost"' not in str(said.value):
                break  # else it asks again, as one does after an error of its SDK
        yield Ask("complete", {"result": said.value})

    for at in range(len(events)):
        provider.go, provider.reached = asyncio.Event(), asyncio.Event()
        provider.acts = [provider.streams(events, hold_after=at), provider.streams(events)]
        asked = len(provider.asked)
        run_id = await house.start(program)
        async with asyncio.timeout(20):
            await provider.reached.wait()
        if victim == "machine":
            await house.kill_machine(run_id)
            await house.reaches(run_id, RunState.RECOVERING, RunState.STARTING, RunState.RUNNING)
        else:
            await house.restart()
        provider.go.set()
        ended = await house.ends(run_id)
        assert (ended.state, ended.result) == (RunState.COMPLETED, whole), at
        assert len(provider.asked) - asked == (1 if victim == "machine" else 2), at
        committed = await house.entries(run_id, "model.committed")
        assert [entry.payload["text"] for entry in committed] == ["by night"], at
