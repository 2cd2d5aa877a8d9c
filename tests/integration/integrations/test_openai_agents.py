"""Conversations of the OpenAI Agents SDK in a real server's log: beside the SDK's own session, and in its runner."""

from __future__ import annotations

import asyncio
import random
from typing import Any
from uuid import uuid4

import pytest

pytest.importorskip("agents", reason="openai-agents is not installed")

from agents import Agent, Model, ModelResponse, RunConfig, Runner, SQLiteSession, Usage
from agents.memory import Session, SessionSettings
from openai.types.responses import ResponseOutputMessage, ResponseOutputText

from perdure.client.server import ServerClient
from perdure.errors import InvalidValue, Unavailable
from perdure.integrations.openai_agents import PerdureSession
from perdure.testing.logservers import LogServer


class Echo(Model):
    """A model that says how many items it was given."""

    async def get_response(self, *args: Any, **given: Any) -> ModelResponse:
        items = given.get("input", args[1] if len(args) > 1 else [])
        text = ResponseOutputText(annotations=[], text=f"heard {len(items)}", type="output_text")
        told = ResponseOutputMessage(
            id=str(uuid4()), content=[text], role="assistant", status="completed", type="message"
        )
        return ModelResponse(output=[told], usage=Usage(), response_id=None)

    def stream_response(self, *args: Any, **given: Any) -> Any:
        raise NotImplementedError


def said(text: str) -> Any:
    return {"role": "user", "content": text}


async def test_it_does_what_the_sdks_own_session_does(log_server: LogServer) -> None:
    ours, theirs = PerdureSession(f"a/{uuid4()}", log_server.client), SQLiteSession("a")
    assert isinstance(ours, Session)
    chance = random.Random(0)
    for step in range(60):
        match chance.randrange(5):
            case 0 | 1:
                items = [said(f"{step}.{n}") for n in range(chance.randrange(4))]
                await asyncio.gather(ours.add_items(items), theirs.add_items(items))
            case 2:
                assert await ours.pop_item() == await theirs.pop_item()
            case 3 if chance.random() < 0.2:
                await asyncio.gather(ours.clear_session(), theirs.clear_session())
        limit = chance.choice([None, 0, 1, 3, 100])
        assert await ours.get_items(limit) == await theirs.get_items(limit)
    theirs.close()


async def test_a_conversation_goes_on_in_another_program(log_server: LogServer) -> None:
    name, agent = str(uuid4()), Agent(name="echo", model=Echo())
    quiet = RunConfig(tracing_disabled=True)
    first = await Runner.run(agent, "hello", session=PerdureSession(name, log_server.client), run_config=quiet)
    log_server.kill()
    with pytest.raises(Unavailable, match="does not answer"):
        await Runner.run(agent, "again", session=PerdureSession(name, log_server.client), run_config=quiet)
    log_server.start()
    other = PerdureSession(name, ServerClient(log_server.home))
    second = await Runner.run(agent, "again", session=other, run_config=quiet)
    assert (first.final_output, second.final_output) == ("heard 1", "heard 3")
    items: list[Any] = await other.get_items()
    assert [item["role"] for item in items] == ["user", "assistant", "user", "assistant"]
    short = PerdureSession(name, log_server.client, session_settings=SessionSettings(limit=2))
    assert await short.get_items() == items[2:]


async def test_programs_that_write_at_once_lose_nothing(log_server: LogServer) -> None:
    name = str(uuid4())
    sessions = [PerdureSession(name, ServerClient(log_server.home)) for _ in range(4)]
    await asyncio.gather(*(one.add_items([said(f"{n}.{m}") for m in range(3)]) for n, one in enumerate(sessions)))
    items: list[Any] = await sessions[0].get_items()
    assert sorted(item["content"] for item in items) == [f"{n}.{m}" for n in range(4) for m in range(3)]
    popped: list[Any] = await asyncio.gather(*(one.pop_item() for one in sessions))
    assert len({item["content"] for item in popped}) == 4 and len(await sessions[0].get_items()) == 8


async def test_what_cannot_be_kept_is_refused_whole(log_server: LogServer) -> None:
    session = PerdureSession(str(uuid4()), log_server.client)
    with pytest.raises(InvalidValue, match="not a JSON value"):
        await session.add_items([said("fine"), {"role": "user", "content": object()}])  # type: ignore[typeddict-item]
    assert await session.get_items() == []
