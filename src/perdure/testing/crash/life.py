"""One life: a state folder with a real perdured, its node and its provider, until all runs have ended."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from perdure.errors import PerdureError
from perdure.host.paths import Home
from perdure.model import RunInfo, SandboxSpec
from perdure.server.machines import LABEL
from perdure.testing.crash import checks, pruning
from perdure.testing.crash.listener import Listener
from perdure.testing.crash.node import SmallNode
from perdure.testing.crash.people import People
from perdure.testing.crash.provider import CountingProvider
from perdure.testing.crash.serving import SERVER, Death, Serving, write_settings
from perdure.testing.crash.workload import PLANS, Outside, Plan, program
from perdure.testing.machines import Program
from perdure.testing.will import Will

WRITTEN_BYTES = 1000  # of some 6,000 that a life records, at most between two kills at random instants
LIFE_S = 300.0  # within which everything has ended, on a busy machine


@dataclass(frozen=True)
class Wish:
    """What is to happen in a life. ``crash``: POINT:MOMENT:N at which its first server dies; or with ``before`` its
    second one, where the first died at that. ``kills``: so many deaths at random instants, drawn from ``seed``."""

    database: str = "sqlite"
    crash: str = ""
    before: str = ""
    kills: int = 0
    seed: int = 0

    @property
    def name(self) -> str:
        if self.before:
            return f"{self.crash} after {self.before}"
        return self.crash or (f"random {self.seed}" if self.kills else "undisturbed")


@dataclass
class Outcome:
    """What came of a life."""

    wish: Wish
    wrong: list[str] = field(default_factory=list)
    deaths: list[Death] = field(default_factory=list)
    seconds: float = 0.0
    points: list[str] = field(default_factory=list)  # of all writes, in order
    random_deaths: int = 0

    @property
    def is_reached(self) -> bool:
        """A server died where one was to."""
        return sum(death.who == "server" for death in self.deaths) > bool(self.wish.before)


class Life:
    """Made for one ``run``."""

    def __init__(
        self,
        folder: Path,
        wish: Wish,
        *,
        database: str = "",
        server: Sequence[str] = SERVER,
        plans: Sequence[Plan] = PLANS,
        will: Will | None = None,
    ) -> None:
        """database: the url of an empty one of PostgreSQL. server: the command line of perdured. will: of the program,
        where it may be killed."""
        self.wish, self._folder, self._plans = wish, folder, plans
        self.home = Home(folder / "home", folder / "cache").make()
        self.provider = CountingProvider()
        self.listener = Listener()
        self.node = SmallNode(self.home, self._program)
        self.outside = Outside(folder / "ledger", self._lose)
        self.people = People(self.home, self.outside.ledger)
        self.deaths: list[Death] = []
        self.wrong: list[str] = []
        environ = {"PERDURE_CRASH_POINTS": str(folder / "points"), "PERDURE_DATABASE": database}
        crashes = [crash for crash in (wish.before, wish.crash) if crash]
        self._serving = Serving(
            self.home, folder / "perdured.log", environ, self.deaths, self.wrong, crashes, command=server, will=will
        )
        self._killed = 0  # at random
        self._preparing, self._is_prepared = asyncio.Lock(), False
        self._losing: set[asyncio.Task[None]] = set()

    async def run(self) -> Outcome:
        began = time.monotonic()
        await self.provider.open()
        await self.listener.open()
        await self.node.open()
        self.people.hook = self.listener.url
        write_settings(self.home, provider=self.provider.url, hook=self.listener.url)
        serving = asyncio.create_task(self._serving.run())
        killing = asyncio.create_task(self._kill_at_random())
        people = [asyncio.create_task(self._see_through(plan)) for plan in self._plans]
        try:
            async with asyncio.timeout(LIFE_S):
                await asyncio.wait(people, return_when=asyncio.FIRST_EXCEPTION)
                ends = [(plan, info) for plan, of in zip(self._plans, people, strict=True) for info in await of]
                await self._released()
                self.wrong += await checks.wrong(self, ends)
                await self.people.tidy_up()
                self.wrong += await pruning.wrong(self, ends)
                killing.cancel()
        except TimeoutError:
            self.wrong.append(f"it had not ended after {LIFE_S:g} s: {self._serving.tail()}")
        except PerdureError as error:
            self.wrong.append(f"somebody was refused what was asked for: {error}")
        finally:
            for task in (killing, *people):
                task.cancel()
            await asyncio.wait({killing, *people})
            await self._serving.end(serving)
            if not self._serving.is_killed:
                self.wrong += checks.left(self.home)
            await self.node.close()
            await self.provider.close()
            await self.listener.close()
        record = self._folder / "points"
        points = record.read_text().split() if record.exists() else []
        return Outcome(self.wish, self.wrong, self.deaths, time.monotonic() - began, points, self._killed)

    @property
    def answered(self) -> list[tuple[str, str, str]]:
        """What guests were told: run, key and path."""
        return self.node.acknowledged

    async def _see_through(self, plan: Plan) -> list[RunInfo]:
        async with self._preparing:
            if not self._is_prepared:
                await self.people.prepare()
                self._is_prepared = True
        return await self.people.see_through(plan)

    # -- machines

    def _program(self, spec: SandboxSpec) -> Program:
        return program(spec.command[-1].rpartition(":")[2], self.outside, spec.labels[LABEL])

    def _lose(self, run: str) -> None:
        task = asyncio.create_task(self._kill_machine(run))
        self._losing.add(task)
        task.add_done_callback(self._losing.discard)

    async def _kill_machine(self, run: str) -> None:
        for sandbox_id in self.node.running():
            if self.node.sandboxes[sandbox_id].spec.labels[LABEL] == run:
                await self.node.kill(sandbox_id)
                self.deaths.append(Death(run, time.time()))

    async def _released(self) -> None:
        """Until nothing is left of any machine. Its removal is asked for by the server; nobody tells."""
        while self.node.sandboxes:  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    async def _written(self, more_bytes: int) -> None:
        """Until so much more is in the record of points: instants are far apart by what happens in between, and not by
        how long a busy machine takes for it."""
        record = self._folder / "points"
        wanted = (record.stat().st_size if record.exists() else 0) + more_bytes
        while more_bytes and (not record.exists() or record.stat().st_size < wanted):  # noqa: ASYNC110 - a file of another process
            await asyncio.sleep(0.005)

    async def _kill_at_random(self) -> None:
        chance, last = random.Random(self.wish.seed), None
        for _ in range(self.wish.kills):
            await self._written(chance.randrange(WRITTEN_BYTES))
            await asyncio.sleep(chance.uniform(0.0, 0.05))
            running, process = self.node.running(), self._serving.process
            if running and chance.random() < 0.4:
                await self._kill_machine(self.node.sandboxes[chance.choice(running)].spec.labels[LABEL])
            elif process is not last and self._serving.kill():
                last = process
            else:
                continue
            self._killed += 1
