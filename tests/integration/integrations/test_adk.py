"""Sessions of Google's ADK in a real server's log: beside ADK's own service in memory, and in its own runner."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncGenerator
from typing import Any
from uuid import uuid4

import pytest

pytest.importorskip("google.adk", reason="google-adk is not installed: `make build/adk.done` has it in build/adk")

from google.adk.agents import BaseAgent
from google.adk.agents.invocation_context import InvocationContext
from google.adk.errors.already_exists_error import AlreadyExistsError
from google.adk.errors.session_not_found_error import SessionNotFoundError
from google.adk.events import Event, EventActions
from google.adk.runners import Runner
from google.adk.sessions import InMemorySessionService, Session
from google.adk.sessions.base_session_service import GetSessionConfig
from google.genai.types import Blob, Content, Part

from perdure.client.server import ServerClient
from perdure.errors import InvalidValue, Unavailable
from perdure.integrations.adk import PerdureSessionService
from perdure.testing.logservers import LogServer


def event(text: str, at: float = 0.0, **changes: Any) -> Event:
    content = Content(role="user", parts=[Part(text=text), Part(inline_data=Blob(data=b"\xff\x00", mime_type="x/y"))])
    return Event(author="user", content=content, timestamp=at or 1e9, actions=EventActions(state_delta=changes))


def shown(session: Session | None) -> Any:
    assert session is not None
    return session.model_dump(exclude={"last_update_time"})


async def test_it_does_what_adks_own_service_does(log_server: LogServer) -> None:
    app, users = f"app {uuid4()}", ["ann", "bob/x"]
    ours, theirs = PerdureSessionService(log_server.client), InMemorySessionService()
    start = {"own": 1, "app:all": [1], "user:mine": {"a": None}, "temp:gone": 2}
    for user in users:
        for one in ("first", "second"):
            made = [
                await service.create_session(app_name=app, user_id=user, session_id=one, state={**start, "user:n": one})
                for service in (ours, theirs)
            ]
            assert shown(made[0]) == shown(made[1])
    for service in (ours, theirs):
        with pytest.raises(AlreadyExistsError):
            await service.create_session(app_name=app, user_id="ann", session_id="first")
        session = await service.get_session(app_name=app, user_id="ann", session_id="first")
        assert session is not None
        for n in range(5):
            changes = {f"own{n}": n, "app:last": n, "user:last": n, "temp:x": n}
            await service.append_event(session, event(f"said {n}", 1e9 + n, **changes))
        assert session.state["temp:x"] == 4
        partial = event("half")
        partial.partial = True
        await service.append_event(session, partial)
    limits: list[dict[str, Any]] = [
        {},
        {"num_recent_events": 0},
        {"num_recent_events": 2},
        {"after_timestamp": 1e9 + 3},
        {"num_recent_events": 3, "after_timestamp": 1e9 + 4},
    ]
    for limit in limits:
        config = GetSessionConfig(**limit)
        got = [
            await service.get_session(app_name=app, user_id="ann", session_id="first", config=config)
            for service in (ours, theirs)
        ]
        for session in got:
            assert session is not None
            for one_event in session.events:
                one_event.id = ""
        assert shown(got[0]) == shown(got[1]), limit
    for user in (None, "ann", "bob/x", "nobody"):
        lists = [await service.list_sessions(app_name=app, user_id=user) for service in (ours, theirs)]
        found = [sorted(map(shown, one.sessions), key=lambda told: (told["user_id"], told["id"])) for one in lists]
        assert found[0] == found[1]
    assert [session.id for session in (await ours.list_sessions(app_name=app, user_id="ann")).sessions][-1] == "second"
    assert await ours.get_user_state(app_name=app, user_id="ann") == {"mine": {"a": None}, "n": "second", "last": 4}
    assert await ours.get_user_state(app_name=app, user_id="nobody") == {}
    for service in (ours, theirs):
        await service.delete_session(app_name=app, user_id="ann", session_id="first")
        await service.delete_session(app_name=app, user_id="ann", session_id="first")
        assert await service.get_session(app_name=app, user_id="ann", session_id="first") is None


class Counts(BaseAgent):
    """An agent that says how many events it sees, and counts in the user's state."""

    async def _run_async_impl(self, ctx: InvocationContext) -> AsyncGenerator[Event, None]:
        count = ctx.session.state.get("user:count", 0) + 1
        text = f"{len(ctx.session.events)} events, {count}"
        yield Event(
            author=self.name,
            invocation_id=ctx.invocation_id,
            content=Content(role="model", parts=[Part(text=text)]),
            actions=EventActions(state_delta={"user:count": count}),
        )


async def test_a_session_goes_on_in_another_program(log_server: LogServer) -> None:
    user, told = str(uuid4()), []

    async def say(service: PerdureSessionService) -> None:
        runner = Runner(app_name="counting", agent=Counts(name="counts"), session_service=service)
        message = Content(role="user", parts=[Part(text="go on")])
        async for one in runner.run_async(user_id=user, session_id="s", new_message=message):
            assert one.content and one.content.parts
            told.append(one.content.parts[0].text)

    first = PerdureSessionService(log_server.client)
    await first.create_session(app_name="counting", user_id=user, session_id="s")
    await say(first)
    log_server.kill()
    with pytest.raises(Unavailable, match="does not answer"):
        await say(first)
    log_server.start()
    await say(PerdureSessionService(ServerClient(log_server.home)))
    assert told == ["1 events, 1", "3 events, 2"]


async def test_who_has_an_old_session_is_told(log_server: LogServer) -> None:
    service, user = PerdureSessionService(log_server.client), str(uuid4())
    session = await service.create_session(app_name="a", user_id=user, session_id="s")
    other = await service.get_session(app_name="a", user_id=user, session_id="s")
    assert other is not None
    await service.append_event(other, event("first"))
    with pytest.raises(ValueError, match="since it was loaded"):
        await service.append_event(session, event("late"))
    await service.append_event(other, event("second"))
    await service.delete_session(app_name="a", user_id=user, session_id="s")
    with pytest.raises(SessionNotFoundError):
        await service.append_event(other, event("third"))


async def test_sessions_of_one_user_count_together(log_server: LogServer) -> None:
    service, user = PerdureSessionService(log_server.client), str(uuid4())
    sessions = [await service.create_session(app_name="a", user_id=user) for _ in range(4)]
    await asyncio.gather(*(service.append_event(one, event("x", **{f"user:{n}": n})) for n, one in enumerate(sessions)))
    assert await service.get_user_state(app_name="a", user_id=user) == {str(n): n for n in range(4)}


async def test_what_cannot_be_kept_is_named(log_server: LogServer) -> None:
    service, user = PerdureSessionService(log_server.client), str(uuid4())
    with pytest.raises(InvalidValue, match="the state cannot be kept"):
        await service.create_session(app_name="a", user_id=user, state={"x": object()})
    session = await service.create_session(app_name="a", user_id=user, state={"day": datetime.date(2026, 1, 2)})
    assert session.state == {"day": "2026-01-02"}
