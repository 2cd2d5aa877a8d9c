"""What a turn's end meets: who stops it before it begins, who asks meanwhile, a log that is away."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure.context.log import ContextLog, NewEntry
from perdure.errors import Unavailable
from perdure.gateway.gateway import Gateway
from perdure.testing.speeches import chat_events as events

from .conftest import RUN, Provider, chat, providers_of, read

pytestmark = pytest.mark.timeout(30)


async def test_who_asked_right_before_the_run_ended_is_told(gateway: Gateway, provider: Provider) -> None:
    provider.acts = [provider.says("hello")]
    asker = asyncio.create_task(gateway.answer(chat(), 1))
    await asyncio.sleep(0)  # the turn is there, and its task has not begun
    assert gateway.is_in_flight(RUN)
    await gateway.forget(RUN)
    with pytest.raises(Unavailable):
        await asyncio.wait_for(asker, 10)
    assert not gateway.in_flight and not provider.asked
    assert b"hello" in await read(await gateway.answer(chat(), 1))


async def test_who_asks_again_while_a_refusal_is_written_does_not_ask_anew(
    gateway: Gateway, provider: Provider, log: ContextLog
) -> None:
    provider.acts = [provider.refuses(400), provider.says("paid twice")]
    told = await read(await gateway.answer(chat(), 1))
    await log.append(RUN, [NewEntry(kind="model.replayed", payload={"seq": 0}, key="main/1")], epoch=2)
    assert await read(await gateway.answer(chat(epoch=2), 1)) == told
    assert len(provider.asked) == 1


async def test_what_a_server_took_with_it_is_marked_also_where_a_second_machine_had_joined(
    provider: Provider, log: ContextLog
) -> None:
    provider.acts = [provider.streams(events("a"), hold_after=1), provider.streams(events("a"))]
    dying = Gateway(log, providers_of(provider))
    await dying.answer(chat(stream=True), 1)
    await log.append(RUN, [NewEntry(kind="run.recovering")], epoch=2)
    await dying.answer(chat(stream=True, epoch=2), 1)
    await dying.close()
    async with Gateway(log, providers_of(provider)) as fresh:
        assert await read(await fresh.answer(chat(stream=True, epoch=2), 1)) == b"".join(events("a"))
    found = [entry.kind for entry in await log.read(RUN) if entry.key == "main/1"]
    assert found[-4:] == ["model.replayed", "model.aborted", "model.started", "model.committed"]


async def test_a_stream_that_said_its_last_is_not_waited_for(
    gateway: Gateway, provider: Provider, log: ContextLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its SDK would go on, too, also where the connection stays open or pings come for ever."""
    monkeypatch.setattr("perdure.gateway.gateway.END_S", 0.1)
    pieces = events("a")
    provider.acts = [
        provider.streams([*pieces, b": ping\n\n"], hold_after=len(pieces)),
        provider.streams([*pieces, *[b": ping\n\n"] * 200_000]),
    ]
    for ordinal in (1, 2):
        answer = await gateway.answer(chat(ordinal, stream=True), 1)
        assert (await asyncio.wait_for(read(answer), 10)).startswith(b"".join(pieces))
        assert (await log.read(RUN))[-1].kind == "model.committed"


@pytest.mark.parametrize("act", ["refuses", "breaks off", "says an error"])
async def test_what_a_program_is_told_is_kept_also_where_the_log_is_away_for_a_moment(
    gateway: Gateway, provider: Provider, log: ContextLog, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    error = b'data: {"error": {"message": "overloaded"}}\n\n'
    acts = {
        "refuses": provider.refuses(400),
        "breaks off": provider.streams(events("a", "b"), cut_after=1),
        "says an error": provider.streams([events("a")[0], error]),
    }
    provider.acts = [acts[act], provider.streams(events("paid twice"))]
    real, times = log.append, 0

    async def append(run_id: str, new: Any, **how: Any) -> Any:
        nonlocal times
        if new[-1].kind == "model.aborted" and times < 2:
            times += 1
            raise Unavailable("the database is away")
        return await real(run_id, new, **how)

    monkeypatch.setattr(log, "append", append)
    told = await read(await gateway.answer(chat(stream=True), 1))
    assert times == 2
    assert await read(await gateway.answer(chat(stream=True), 1)) == told
    assert len(provider.asked) == 1 and (await log.read(RUN))[-1].kind == "model.aborted"
