"""The server dies at every one of its durable writes, just before and just after it. No run notices.

The log of the dying server does the Nth write (or not) and never answers again, as kill -9 leaves it; machines live on.
A new server opens the same file. What must hold is in ``check``.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import msgspec
import pytest

from perdure.context.log import ContextLog
from perdure.errors import Conflict, PerdureError
from perdure.model import RunState
from perdure.runs.driver import Settings
from perdure.testing.house import AGENT, DEADLINE_S, House
from perdure.testing.machines import CHAT, Ask, Effect

WRITES = ("create", "append", "fork", "put_blob")
ENDED = (RunState.COMPLETED, RunState.FAILED, RunState.CANCELLED)


STOPPED: list[asyncio.Event] = []  # so that what waits for ever is not collected as garbage


class DyingLog:
    """A log that stops at its ``at``-th write: ``done`` says whether that one still reaches the file."""

    def __init__(self, log: ContextLog, at: int, done: bool) -> None:
        self._log = log
        self._left = at
        self._done = done
        self.dead = asyncio.Event()
        self._never = asyncio.Event()
        STOPPED.append(self._never)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._log, name)
        return self._write(found) if name in WRITES else found

    def _write(self, write: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def dying(*values: Any, **named: Any) -> Any:
            self._left -= 1
            if self._left > 0:
                return await write(*values, **named)
            if self._left == 0 and self._done:
                await write(*values, **named)
            self.dead.set()
            return await self._never.wait()

        return dying


class World:
    """What a run does outside; it is not undone by anything."""

    def __init__(self) -> None:
        self.effects: Counter[str] = Counter()

    def do(self, name: str) -> str:
        self.effects[name] += 1
        return name


def agent(world: World) -> Callable[[], Generator[Any, Any, Any]]:
    def program() -> Generator[Any, Any, Any]:
        yield Ask("begin", {}, at=0)
        yield Ask("emit", {"name": "started"}, at=1)
        one = yield Ask(CHAT, {"messages": [{"role": "user", "content": "one"}]}, at=2)
        asked = yield Ask("step", {"name": "draft", "on_doubt": "retry"}, at=3)
        if asked.value["status"] == "run":
            result = yield Effect(lambda: world.do("draft"))
            yield Ask("step/end", {"result": result}, at=3)
        verdict = yield Ask("wait", {"kind": "approval", "prompt": "Go on?"}, at=4)
        two = yield (ask := Ask(CHAT, {"messages": [{"role": "user", "content": "two"}], "stream": True}, at=5))
        while "[DONE]" not in two.value:
            two = yield ask  # the stream died with its server: as the SDK, under the same key
        yield Ask("wait", {"kind": "time", "seconds": 0.05}, at=6)
        result = [one.status, verdict.value["approved"], two.value.count("[DONE]")]
        yield Ask("complete", {"result": result}, at=7)

    return program


async def finish(house: House) -> str:
    """Do what people do until the run has ended; returns its id."""
    info, _ = await house.engine.start(msgspec.structs.replace(AGENT, key="once"))
    async with asyncio.timeout(DEADLINE_S):
        while info.state not in ENDED:
            if any(wait["kind"] == "approval" for wait in info.waits):
                try:
                    await house.engine.approve(info.id, None, approved=True)
                except Conflict:
                    pass  # a former server took the answer, and died before it said so
            info = await house.engine.ended(info.id, 0.02)
    return info.id


async def check(house: House, world: World, run_id: str, requests: int, *, losses: int) -> None:
    """losses: how many crashes there were; each may leave one effect or one turn in doubt."""
    info = await house.engine.info(run_id)
    assert (info.state, info.result) == (RunState.COMPLETED, [200, True, 1]), info
    kinds = Counter(entry.kind for entry in await house.entries(run_id))
    assert kinds["model.intent"] == kinds["model.committed"] == 2
    assert kinds["wait.started"] == kinds["wait.completed"] == 2
    assert kinds["step.result"] == kinds["emit"] == kinds["run.completed"] == 1
    assert 2 <= requests <= 2 + losses
    assert info.turns_asked >= requests  # each request was recorded before it was sent
    assert 1 <= world.effects["draft"] <= 1 + losses
    assert (await house.context.verify(run_id)).entries == sum(kinds.values())


async def count_writes(house: House) -> int:
    total = 0

    class Counting(DyingLog):
        def _write(self, write: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
            nonlocal total
            total += 1
            return write

    await house.down()
    house.wrap = lambda log: Counting(log, 0, False)
    await house.up()
    world = World()
    house.machines.program = agent(world)
    await finish(house)
    return total


@pytest.mark.timeout(600)
@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("suspends", [True, False], ids=["suspending", "warm"])
async def test_the_server_dies_at_every_write(tmp_path: Any, provider: Any, done: bool, suspends: bool) -> None:
    settings = Settings(idle_grace_s=0.01 if suspends else 60, backoff_s=0.01, backoff_max_s=0.05)

    async def fresh(name: str) -> House:
        folder = tmp_path / name
        folder.mkdir()
        made = House(folder, provider.url)
        made.settings = settings
        return made

    first = await fresh("count")
    await first.up()
    writes = await count_writes(first)
    await first.machines.close()
    await first.down()
    assert writes > 15
    for at in range(1, writes + 1):
        house, world = await fresh(f"at{at}"), World()
        dying: list[DyingLog] = []

        def wrap(log: ContextLog, at: int = at, dying: list[DyingLog] = dying) -> DyingLog:
            dying.append(DyingLog(log, at, done))
            return dying[-1]

        house.wrap, provider.requests = wrap, 0
        house.machines.program = agent(world)
        await house.up()
        life = asyncio.ensure_future(finish(house))
        await asyncio.wait({life, asyncio.ensure_future(dying[0].dead.wait())}, return_when=asyncio.FIRST_COMPLETED)
        life.cancel()
        await house.down()
        house.wrap = lambda log: log
        await house.up()
        run_id = await finish(house)
        await check(house, world, run_id, provider.requests, losses=1)
        await house.machines.close()
        await house.down()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(6))
async def test_servers_and_machines_die_at_random_moments(house: House, provider: Any, seed: int) -> None:
    chance, world = random.Random(seed), World()
    house.settings = Settings(idle_grace_s=0.01, backoff_s=0.01, backoff_max_s=0.05, failures_max=100)
    house.machines.program = agent(world)
    await house.down()
    await house.up()
    losses = 8
    for _ in range(losses):
        life = asyncio.ensure_future(finish(house))
        await asyncio.wait({life}, timeout=chance.uniform(0.0, 0.15))
        for sandbox_id in list(house.machines.sandboxes):
            if chance.random() < 0.6:
                try:
                    await house.machines.kill(sandbox_id)
                except PerdureError:
                    pass  # it was just removed
        if chance.random() < 0.6:
            life.cancel()
            await house.down()
            await house.up()
        else:
            life.cancel()
    run_id = await finish(house)
    await check(house, world, run_id, provider.requests, losses=losses)
