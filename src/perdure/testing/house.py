"""A house for tests of runs: a real log, engine and gateway, small real machines, and a provider that counts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from inspect import isawaitable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from perdure.context.leases import Leases
from perdure.context.log import ContextLog
from perdure.context.sqlite import open as open_in_file
from perdure.gateway.gateway import Gateway
from perdure.gateway.prices import Prices
from perdure.gateway.providers import Providers, RemoteProvider
from perdure.gateway.toolsecrets import ToolSecrets
from perdure.model import Answer, Call, Entry, RunInfo, RunState
from perdure.runs.clock import SYSTEM, Clock
from perdure.runs.driver import Settings
from perdure.runs.engine import Engine
from perdure.runs.record import StartRequest
from perdure.runs.tenure import Tenure, Terms
from perdure.testing.machines import LocalMachines, Program
from perdure.testing.speeches import all_used

Moved = TypeVar("Moved", bound=Clock)

DEADLINE_S = 20.0
QUICK_TERMS = Terms(heartbeat_s=0.1, lost_s=1.0)
QUICK = Settings(shelve_after_s=None, idle_grace_s=0.03, suspend_retry_s=0.1, backoff_s=0.02, backoff_max_s=0.1)
AGENT = StartRequest(image="image", source="def main(ctx): ...", file="agent.py", function="main")


def nothing() -> Generator[Any, Any, Any]:
    """A program that ends at once."""
    yield from ()


class House:
    """One state folder with its server, which can be killed and started again. ``open_log``: where several houses share
    a database."""

    def __init__(
        self, folder: Path, provider_url: str, open_log: Callable[[], Awaitable[ContextLog]] | None = None
    ) -> None:
        self.path = folder / "perdure.db"
        self.terms = QUICK_TERMS
        self.server = ""  # the newest id of its server, as its file has it
        self._open_log = open_log or (lambda: open_in_file(self.path))
        self.machines = LocalMachines(nothing)
        self.settings = QUICK
        self.prices = Prices()
        self.secrets: ToolSecrets | None = None
        self.clock: Clock = SYSTEM
        self.wrap: Callable[[ContextLog], Any] = lambda log: log
        self.before_open: Callable[[Engine], None] = lambda engine: None
        self._provider_url = provider_url
        self.context: ContextLog
        self.log: Any
        self.engine: Engine

    async def up(self) -> None:
        self.context = await self._open_log()
        self.log = self.wrap(self.context)
        provider = RemoteProvider("test", self._provider_url, "", "tiny", "any")
        self.gateway = Gateway(self.log, Providers({"test": provider}, "test"), prices=self.prices, now=self.clock.time)
        self.engine = Engine(
            self.log,
            self.machines,
            self.gateway,
            calls_url="unix:/x",
            secret=b"secret",
            settings=self.settings,
            clock=self.clock,
            secrets=self.secrets,
        )
        engine = self.engine
        if self.context.leases is not None:
            engine.tenure = self._tenure(self.context.leases)
        self.before_open(engine)
        await engine.open()

        async def door(call: Call, token: str) -> Answer:
            return await engine.answer(call, token)

        self.machines.door = door

    def _tenure(self, leases: Leases) -> Tenure:
        def remember(server: str) -> None:
            self.server = server

        facts = {"node": self.machines.node.id}
        return Tenure(leases, self.engine, facts, former=self.server, remember=remember, terms=self.terms)

    async def down(self) -> None:
        """As kill -9 leaves it: nothing is written any more, machines go on."""
        self.machines.hang_up()
        self.engine.tenure = None  # its lease stays, and does not move any more
        await self.engine.close()
        await self.gateway.close()
        await self.context.close()

    async def at(self, clock: Moved) -> Moved:
        """Live by this clock from now on."""
        await self.down()
        self.clock = clock
        await self.up()
        return clock

    async def start(self, program: Program, **changes: Any) -> str:
        self.machines.program = program
        info, is_new = await self.engine.start(msgspec.structs.replace(AGENT, **changes))
        assert is_new
        return info.id

    async def reaches(self, run_id: str, *states: RunState) -> RunInfo:
        """The run once it is in one of the states."""
        async with self.engine._shelf.held(run_id) as run:
            if run is not None and run.state not in states:
                async with asyncio.timeout(DEADLINE_S):  # of the host's clock: the runs' may stand still
                    await run.until(lambda: run.state in states or run.ended)
        info = await self.engine.info(run_id)
        assert info.state in states, info
        return info

    async def waits(self, run_id: str, kind: str) -> None:
        """Wait until the program is parked on such a wait, and asks for it, or sleeps over it."""
        async with self.engine._shelf.held(run_id) as run, asyncio.timeout(DEADLINE_S):
            assert run is not None

            def parked() -> bool:
                asleep = run.state is RunState.SUSPENDED
                return any(wait.kind == kind and (asleep or run._asking.get(wait.id)) for wait in run.record.waits.open)

            await run.until(parked)

    async def ends(self, run_id: str) -> RunInfo:
        async with asyncio.timeout(DEADLINE_S + 1):
            info = await self.engine.ended(run_id, DEADLINE_S)
        assert info.state in (RunState.COMPLETED, RunState.FAILED, RunState.CANCELLED), info
        return info

    async def appears(self, run_id: str) -> RunInfo:
        """A run that something else than a test starts, once it is there: nobody is told of that."""
        for _ in range(int(DEADLINE_S / 0.01)):
            if run_id in self.engine._runs:
                break
            await asyncio.sleep(0.01)
        return await self.engine.info(run_id)

    async def released(self, run_id: str) -> None:
        """Wait until nothing is left of an ended run's machine."""
        run = self.engine._runs.get(run_id)
        assert run is None or await run.until(lambda: run.record.released, 10)

    async def entries(self, run_id: str, kind: str | None = None) -> list[Entry]:
        return await self.context.read(run_id, kind=kind, limit=100_000)

    async def restart(self) -> None:
        """As kill -9 and a new start."""
        await self.down()
        await self.up()

    def sandbox(self, run_id: str) -> str:
        return self.engine._runs[run_id].record.sandbox_id

    async def kill_machine(self, run_id: str) -> None:
        await self.machines.kill(self.sandbox(run_id))


class Provider:
    """An OpenAI-compatible provider that counts; ``silence`` stops it before its answer, ``hold`` in the middle. It
    uses each tool that it is told of, once."""

    def __init__(self) -> None:
        self.requests = 0
        self.silence: asyncio.Event | None = None
        self.hold: asyncio.Event | None = None
        self.reached = asyncio.Event()
        self.url = ""
        self._runner: web.AppRunner | None = None

    async def open(self) -> None:
        """Listen on a free loopback port: ``url``."""
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self.complete)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}/v1"

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def complete(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        asked = await request.json()
        if self.silence is not None:
            await self.silence.wait()
        if asked.get("tools") and asked["messages"][-1]["role"] == "user":
            return web.json_response(all_used(asked["tools"]))
        text = f"answer to {asked['messages'][-1]['content']}"
        if not asked.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            return web.json_response({"id": "1", "object": "chat.completion", "model": "tiny", "choices": [choice]})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for word in text.split():
            await response.write(
                b'data: {"choices": [{"index": 0, "delta": {"content": "' + word.encode() + b' "}}]}\n\n'
            )
            self.reached.set()
            if self.hold is not None:
                await self.hold.wait()
        await response.write(b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n')
        await response.write(b"data: [DONE]\n\n")
        return response


async def until(true: Callable[[], Any], deadline_s: float = DEADLINE_S) -> None:
    """Of what changes in the database, or outside: nobody is told of that. true: what it returns may be awaitable."""
    async with asyncio.timeout(deadline_s):
        while not (await found if isawaitable(found := true()) else found):  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.01)
