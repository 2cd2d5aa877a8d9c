"""Who asks too much of a provider waits for its turn: in order, fairly between runs, and without gaps."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from perdure.context.log import ContextLog
from perdure.errors import InvalidValue
from perdure.gateway import limits
from perdure.gateway.gateway import Gateway
from perdure.gateway.limits import Limiter, Limits
from perdure.gateway.providers import Providers, RemoteProvider, load
from perdure.gateway.upstream import Retry
from perdure.host.paths import Home
from perdure.model import Call
from perdure.testing import speeches

from .conftest import RUN, Provider, chat, providers_of, read


class Users:
    """Requests that are held until a test ends them; ``begun`` in the order in which they were let go."""

    def __init__(self, limiter: Limiter) -> None:
        self.limiter = limiter
        self.begun: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.ends: dict[str, asyncio.Event] = {}

    async def ask(self, run: str, name: str, tokens: int = 1) -> None:
        end = self.ends[name] = asyncio.Event()

        async def use() -> None:
            async with self.limiter.turn(run, name, tokens):
                self.begun.append(name)
                await end.wait()

        self.tasks[name] = asyncio.create_task(use())
        await self.settle()

    async def settle(self) -> None:
        for _ in range(10):  # turns of the loop: nothing here waits for anything else
            await asyncio.sleep(0)

    async def end(self, *names: str) -> None:
        for name in names:
            self.ends[name].set()
            await self.tasks[name]
        await self.settle()

    async def cancel(self, name: str) -> None:
        self.tasks[name].cancel()
        await asyncio.gather(self.tasks[name], return_exceptions=True)
        await self.settle()


async def test_runs_take_turns_and_each_is_served_in_its_order() -> None:
    users = Users(Limiter(Limits(concurrent=1)))
    for name in ("a1", "a2", "a3", "b1", "c1", "b2"):
        await users.ask(name[0], name)
    for number in range(6):
        await users.end(users.begun[number])
    assert users.begun == ["a1", "a2", "b1", "c1", "a3", "b2"]


async def test_who_leaves_leaves_no_gap() -> None:
    users = Users(Limiter(Limits(concurrent=2)))
    for name in ("a1", "a2", "b1", "b2", "c1"):
        await users.ask(name[0], name)
    await users.cancel("b1")  # that waits
    await users.cancel("a1")  # that is on its way
    assert users.begun == ["a1", "a2", "b2"]
    users.ends["a2"].set()
    users.tasks["c1"].cancel()  # at the moment at which it is let go
    await users.ask("d", "d1")
    assert users.begun == ["a1", "a2", "b2", "d1"] and not users.limiter.waiting
    await users.end("b2", "d1")
    await users.ask("e", "e1")
    await users.ask("e", "e2")
    assert users.begun[-2:] == ["e1", "e2"]
    await users.end("e1", "e2")


async def test_no_more_begin_in_any_minute() -> None:
    loop, minute_s = asyncio.get_running_loop(), 0.2
    users, at = Users(Limiter(Limits(requests_per_minute=3), minute_s)), []

    async def use(number: int) -> None:
        async with users.limiter.turn(f"run{number % 2}", f"q{number}", 1):
            at.append(loop.time())

    await asyncio.gather(*(use(number) for number in range(8)))
    for first, fourth in zip(at, at[3:], strict=False):
        assert fourth - first >= minute_s - 0.01
    assert at[7] - at[0] >= 2 * minute_s - 0.01


async def test_tokens_of_a_minute_are_corrected_by_what_was_used() -> None:
    users = Users(Limiter(Limits(tokens_per_minute=100)))
    await users.ask("a", "a1", 90)
    await users.ask("b", "b1", 20)  # waits for the minute to pass
    await users.ask("c", "c1", 1)  # behind it, although it would fit
    assert users.begun == ["a1"]
    users.limiter.used("a1", 70)
    await users.settle()
    assert users.begun == ["a1", "b1", "c1"]
    users.limiter.used("c1", 10_000)
    await users.ask("d", "d1", 1)
    assert users.begun == ["a1", "b1", "c1"]
    await users.cancel("d1")
    await users.end("a1", "b1", "c1")
    users.limiter.close()
    alone = Users(Limiter(Limits(tokens_per_minute=100)))
    await alone.ask("a", "large", 5000)  # it would wait for ever else
    assert alone.begun == ["large"]
    await alone.end("large")


def limited(provider: Provider, limit: Limits) -> Providers:
    remote = RemoteProvider("test", provider.url, model="default-model", kind="any")
    return Providers({"test": remote}, "test", limits={"test": limit})


async def _until(true: Any) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 - nobody is told of that
            await asyncio.sleep(0.01)


async def test_calls_wait_for_a_provider_that_has_as_many_as_it_takes(log: ContextLog, provider: Provider) -> None:
    """The slot is free again with the last byte, and a waiting call that is given up asks nobody."""
    await log.create("another", {})
    provider.acts = [provider.streams(speeches.chat_events("by ", "night"), hold_after=1), provider.says("by day")]
    async with Gateway(log, limited(provider, Limits(concurrent=1))) as gateway:
        first = asyncio.create_task(_read(gateway, chat(1, stream=True)))
        await asyncio.wait_for(provider.reached.wait(), 10)
        given_up = asyncio.create_task(_read(gateway, _of("another", chat(1))))
        last = asyncio.create_task(_read(gateway, chat(2)))
        await _until(lambda: gateway._upstream._limiters["test"].waiting == 2)
        await gateway.forget("another")
        assert len(provider.asked) == 1 and not await log.read("another")
        provider.go.set()
        assert b"night" in await first and b"by day" in await last
        await asyncio.gather(given_up, return_exceptions=True)
    assert len(provider.asked) == 2
    begun = [entry.payload for entry in await log.read(RUN) if entry.kind == "model.started"]
    assert "waited_s" not in begun[0] and begun[1]["waited_s"] > 0


async def test_each_attempt_takes_its_turn_and_none_is_kept_while_nobody_asks(
    log: ContextLog, provider: Provider
) -> None:
    provider.acts = [provider.refuses(500), provider.breaks(), provider.says("by day")]
    retry = Retry(attempts=3, first_s=0.01, most_s=0.01)
    async with Gateway(log, limited(provider, Limits(concurrent=1)), retry=retry) as gateway:
        assert b"by day" in await _read(gateway, chat(1))
        assert b"by day" in await _read(gateway, chat(2))
    assert len(provider.asked) == 4


async def test_a_minute_of_requests(log: ContextLog, provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MINUTE_S", 0.3)
    provider.acts = [provider.says("by day")]
    loop = asyncio.get_running_loop()
    async with Gateway(log, limited(provider, Limits(requests_per_minute=2, tokens_per_minute=25))) as gateway:
        since = loop.time()
        for number in range(4):  # nine tokens each, in the end
            await _read(gateway, chat(number))
        assert loop.time() - since >= 0.29


async def _read(gateway: Gateway, call: Call) -> bytes:
    return await read(await gateway.answer(call, 1))


def _of(run_id: str, call: Call) -> Call:
    return Call(**{**vars(call), "run_id": run_id})


def test_limits_are_read(tmp_path: Path) -> None:
    provider_table = '[providers.work]\nbase_url = "http://x/v1"\n'
    home = Home(tmp_path / "home", tmp_path / "cache").make()
    (home.root / "settings.toml").write_text(provider_table + "requests_per_minute = 50\nconcurrent = 8\n")
    assert load(home, {}).limits == {"work": Limits(requests_per_minute=50, concurrent=8)}
    (home.root / "settings.toml").write_text(provider_table)
    assert load(home, {}).limits == {}
    for wrong in ("concurrent = -1", "tokens_per_minute = 2.5", 'requests_per_minute = "9"', "concurrent = true"):
        (home.root / "settings.toml").write_text(provider_table + wrong)
        with pytest.raises(InvalidValue, match=wrong.split()[0]):
            load(home, {})


def test_a_provider_without_limits_waits_for_nobody(provider: Provider) -> None:
    assert providers_of(provider).limits == {}
