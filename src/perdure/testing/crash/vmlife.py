"""A life on a real microVM: one run, whose parts are killed in a state, or at random instants, until it has ended."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import Any

from perdure.errors import PerdureError
from perdure.host.paths import Home
from perdure.model import RunInfo, RunState
from perdure.runs.policy import NEVER_S
from perdure.testing.crash import checks, hooked
from perdure.testing.crash.ledger import WebLedger
from perdure.testing.crash.listener import Listener
from perdure.testing.crash.parts import BELOW, PARTS, Parts
from perdure.testing.crash.people import AGAIN_S, People
from perdure.testing.crash.provider import CountingProvider, Hold
from perdure.testing.crash.serving import Death, Serving
from perdure.testing.crash.workload import LAPS, Plan, nothing

LIFE_S = 900.0  # within which a run has ended: a processor may be emulated, and the machine busy
GRACE_S = 1.0  # of warm waits
PAUSE_S = (0.2, 5.0)  # between kills at random instants

# The states in which parts are killed, one in each lap, and what the run is then doing. It sleeps early: from then on
# there is a snapshot to recover from, and a pager.
STATES = {
    "starting": "its machine is being made",
    "suspended": "it sleeps",
    "resuming": "its machine is being restored",
    "running": "a step of its program is on its way to the world outside",
    "thinking": "a model thinks",
    "waiting": "it waits for a person, its machine is warm",
    "suspending": "its machine is being captured",
    "recovering": "its machine was killed just before, and is being restored",
}
IN_LOG = {"thinking": "running"}  # the states that the log has then, where they are called otherwise
WARM = ("waiting", "suspending")  # the run is held before, so that pids are known
BORN = ("starting", "resuming", "recovering")  # the machine is being made
NOT_THERE = {"starting": ("pager",), "suspended": tuple(BELOW)}  # parts, in that state

AGENT = """
import json, urllib.request
from perdure import agent

def act(ledger, run, step):
    request = urllib.request.Request(ledger, json.dumps({"run": run, "step": step}).encode())
    with urllib.request.urlopen(request, timeout=600) as answer:
        return answer.read().decode()

@agent()
def laps(ctx, ledger: str, name: str, laps: int):
    said = []
    for lap in range(laps):
        said.append(ctx.chat(f"{name} lap{lap}").text)
        said.append(ctx.step(f"lap{lap}", act, ledger, ctx.run_id, f"lap{lap}"))
        said.append(ctx.approval(f"lap{lap}?").approved)
        open("/notes", "a").write(f"{len(said)} ")
    return [said, open("/notes").read()]
"""


@dataclass(frozen=True)
class VmWish:
    """Who is killed, in which states, one after the other; or how many at random instants, drawn from ``seed``."""

    part: str = ""
    states: tuple[str, ...] = ()
    kills: int = 0
    seed: int = 0

    @property
    def name(self) -> str:
        return self.part or f"random {self.seed}"

    @property
    def laps(self) -> int:
        return len(self.states) or LAPS


@dataclass
class VmOutcome:
    wish: VmWish
    wrong: list[str] = field(default_factory=list)
    killed: list[tuple[str, str, str]] = field(default_factory=list)  # part, the state wished, and that in the log
    seconds: float = 0.0


@dataclass
class Ground:
    """What lives share: a home whose node runs, a server, and what is outside of them."""

    home: Home
    image: str
    provider: CountingProvider
    listener: Listener
    ledger: WebLedger
    serving: Serving
    deaths: list[Death]
    parts: Parts


class Watching(People):
    """It knows how far the run is, and answers what it may."""

    def begin(self) -> None:
        self.kinds: list[str] = []  # of the entries, in order
        self.more = asyncio.Event()
        self.may_answer: set[str] = set()  # names of waits

    def _see(self, entry: dict[str, Any]) -> int:
        seq = super()._see(entry)
        if seq:
            self.kinds.append(entry["kind"])
            self.more.set()
        return seq

    async def comes_to(self, kind: str, *, after: int = 0, count: int = 1) -> int:
        """The position beyond the ``count``-th entry of a kind, from a position on."""
        while True:
            found = [at for at, known in enumerate(self.kinds) if known == kind and at >= after]
            if len(found) >= count:
                return found[count - 1] + 1
            self.more.clear()
            await self.more.wait()

    async def _answer(self, plan: Plan, run_id: str, wait: dict[str, Any]) -> None:
        if wait["name"] in self.may_answer:
            await super()._answer(plan, run_id, wait)


class VmLife:
    """Made for one ``run``."""

    def __init__(self, ground: Ground, wish: VmWish) -> None:
        self.wish, self._ground, self._parts = wish, ground, ground.parts
        self.provider, self.listener, self.outside = ground.provider, ground.listener, ground.ledger
        self.deaths = ground.deaths
        self.answered: list[tuple[str, str, str]] = []  # nobody listens at the line between guest and node
        self.people = Watching(ground.home, ground.home.root / "no ledger")
        self.people.begin()
        self._killed: list[tuple[str, str, float]] = []
        self.name = f"{wish.name} {time.time():.0f}"  # the server knows the lives before
        said: list[Any] = []
        for lap in range(wish.laps):
            said += [f"answer to {self.name} lap{lap}", f"lap{lap} done", True]
        notes = "".join(f"{3 * (lap + 1)} " for lap in range(wish.laps))
        asked = {"ledger": ground.ledger.url, "name": self.name, "laps": wish.laps}
        more = {"source": AGENT, "file": "laps.py", "function": "laps", "image": ground.image, "input": asked}
        asleep = tuple(f"lap{lap}?" for lap, state in enumerate(wish.states) if state == "resuming")
        policy = {"idle_grace_s": GRACE_S, "think_grace_s": NEVER_S}
        self.plan = Plan(self.name, nothing, RunState.COMPLETED, [said, notes], policy=policy, asleep=asleep, more=more)

    async def run(self) -> VmOutcome:
        began, wrong, killed = time.monotonic(), list[str](), list[tuple[str, str, str]]()
        killing = asyncio.create_task(self._kill_in_states() if self.wish.states else self._kill_at_random())
        living = asyncio.create_task(self.people.see_through(self.plan))
        info: RunInfo | None = None
        try:
            async with asyncio.timeout(LIFE_S):
                await asyncio.wait({living, killing}, return_when=asyncio.FIRST_COMPLETED)
                if killing.done():
                    killing.result()
                [info] = await living
        except TimeoutError:
            wrong.append(f"it had not ended after {LIFE_S:g} s: {self._killed}, {self.people.kinds[-5:]}")
        except PerdureError as error:
            wrong.append(f"somebody was refused what was asked for: {error}")
        finally:
            for holds in (self.provider.holds, self.outside.holds):
                for hold in holds.values():
                    hold.free.set()
                holds.clear()
            for task in (killing, living):
                task.cancel()
            await asyncio.wait({killing, living})
        if info is not None:
            wrong += await checks.of_run(self, self.plan, info)
            wrong += await hooked.wrong(self, [info])
            killed = await self._states(info)
            wrong += await self._parts.left()
        return VmOutcome(self.wish, wrong, killed, time.monotonic() - began)

    async def _kill_in_states(self) -> None:
        """One in each lap."""
        holds = [self._hold(lap, state) for lap, state in enumerate(self.wish.states)]
        for lap, state in enumerate(self.wish.states):
            if self.wish.part not in NOT_THERE.get(state, ()):
                await self._kill_in(state, lap, holds[lap])
            holds[lap].free.set()
            self.people.may_answer.add(f"lap{lap}?")

    def _hold(self, lap: int, state: str) -> Hold:
        """Where the run is held, so that the kill comes in its state."""
        hold = Hold()
        if state == "thinking":
            self.provider.holds[f"{self.name} lap{lap}"] = hold
        elif state in ("running", "recovering", *WARM):
            self.outside.holds[f"lap{lap}"] = hold
        return hold

    async def _kill_in(self, state: str, lap: int, hold: Hold) -> None:
        people, part, pids = self.people, self.wish.part, dict[str, int]()
        if state in ("running", "thinking", "recovering", *WARM):
            await hold.reached.wait()
            pids = await self._parts.pids(await self._run_id())
        at = len(people.kinds)
        if state in BORN and part in BELOW:
            await self._kill_born(state, lap, pids)
            return
        if state == "recovering":
            await self._kill("VM", "", pids)
        elif state not in ("running", "thinking", "starting"):
            hold.free.set()
            at = await people.comes_to("step.result", count=lap + 1)
        if state == "resuming":
            people.may_answer.add(f"lap{lap}?")
        if state not in ("running", "thinking"):
            await people.comes_to(f"run.{state}", after=0 if state == "starting" else at)
        await self._kill(part, state, pids)

    async def _kill_born(self, state: str, lap: int, pids: dict[str, int]) -> None:
        """A part below the line, as soon as it is there: whoever kills it waits for it there."""
        if state == "resuming":
            at = await self.people.comes_to("step.result", count=lap + 1)
            await self.people.comes_to("run.suspended", after=at)
        killing = asyncio.create_task(self._kill(self.wish.part, state, {}, await self._parts.living()))
        if state == "recovering":
            await self._kill("VM", "", pids)
        self.people.may_answer.add(f"lap{lap}?")
        await killing

    async def _kill_at_random(self) -> None:
        self.people.may_answer.update(f"lap{lap}?" for lap in range(self.wish.laps))
        chance = random.Random(self.wish.seed)
        for _ in range(self.wish.kills):
            await asyncio.sleep(chance.uniform(*PAUSE_S))
            await self._kill(chance.choice(PARTS), "", {})

    async def _run_id(self) -> str:
        while True:
            known = await self.people.ask(lambda client: client.runs())
            if found := [info.id for info in known if info.key == self.name]:
                return found[0]
            await asyncio.sleep(AGAIN_S)

    async def _kill(self, part: str, state: str, pids: dict[str, int], born_after: list[int] | None = None) -> None:
        """born_after: the next one that is none of these."""
        if part == "server":
            is_killed = self._ground.serving.kill()  # which adds its death
        elif part == "node":
            is_killed = await self._parts.kill_node()
        elif born_after is not None:
            is_killed = await self._parts.kill_next(part, born_after)
        else:
            is_killed = await self._parts.kill_below(part, pids)
        if is_killed:
            moment = time.time()
            self._killed.append((part, state, moment))
            if part in BELOW:
                self.deaths.append(Death(await self._run_id(), moment))

    async def _states(self, info: RunInfo) -> list[tuple[str, str, str]]:
        """Who died, each with the state that was wished, and the one in which the run then was by its log."""
        entries = [e for e in await self.people.lineage(info.id) if e.kind.startswith("run.")]
        found = []
        for part, wished, moment in self._killed:
            before = [entry.kind for entry in entries if entry.time <= moment]
            found.append((part, wished, before[-1].removeprefix("run.") if before else "queued"))
        return found
