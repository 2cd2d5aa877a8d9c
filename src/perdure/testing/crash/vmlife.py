"""A life on a real microVM: one run, whose parts are killed in a state, or by who kills at random (``atrandom``)."""

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
from perdure.testing.crash.parts import BELOW, Parts
from perdure.testing.crash.people import AGAIN_S, People
from perdure.testing.crash.provider import CountingProvider, Hold
from perdure.testing.crash.serving import Death, Serving
from perdure.testing.crash.workload import LAPS, Plan, nothing

LIFE_S = 1500.0  # within which a run has ended: a processor may be emulated, and the machine busy
GRACE_S = 1.0  # of warm waits

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
    """Who is killed, in which states, one after the other; no part: somebody else kills, at random instants."""

    part: str = ""
    states: tuple[str, ...] = ()
    database: str = "sqlite"
    seed: int = 0  # of a life at random: in which laps it sleeps

    @property
    def name(self) -> str:
        return self.part or f"random {self.seed}"

    @property
    def laps(self) -> int:
        return len(self.states) or LAPS

    @property
    def asleep(self) -> tuple[str, ...]:
        """Approvals that come only once the run sleeps. At random one is the first: from then on there is a pager."""
        if self.part:
            return tuple(f"lap{lap}?" for lap, state in enumerate(self.states) if state == "resuming")
        chance = random.Random(self.seed)
        return tuple(f"lap{lap}?" for lap in range(self.laps) if lap == 0 or chance.random() < 0.3)


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
        self.states: list[tuple[float, str]] = []  # of the run, and from when on
        self.more = asyncio.Event()
        self.may_answer: set[str] = set()  # names of waits

    def _see(self, entry: dict[str, Any]) -> int:
        seq = super()._see(entry)
        if seq:
            self.note(entry["kind"], entry["time"])
        return seq

    def note(self, kind: str, moment: float) -> None:
        self.kinds.append(kind)
        if kind.startswith("run."):
            self.states.append((moment, kind.removeprefix("run.")))
        self.more.set()

    def state_at(self, moment: float) -> str:
        """That of the run by its log, as far as it was read."""
        before = [state for since, state in self.states if since <= moment]
        return before[-1] if before else "queued"

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
    """Made for one ``run``. One in whose states somebody dies is alone on its ground."""

    def __init__(self, ground: Ground, wish: VmWish) -> None:
        self.wish, self._ground, self._parts = wish, ground, ground.parts
        self.provider, self.listener, self.outside = ground.provider, ground.listener, ground.ledger
        self.deaths = ground.deaths
        self.answered: list[tuple[str, str, str]] = []  # nobody listens at the line between guest and node
        self.people = Watching(ground.home, ground.home.root / "no ledger")
        self.people.begin()
        self.run_id = ""  # once the run is known
        self._killed: list[tuple[str, str, float]] = []
        self._done, self._deaths = 0, 0  # by the run's program, and of its machines since
        self._held: list[tuple[dict[Any, Hold], Any, Hold]] = []
        self.name = f"{wish.name} {time.time():.0f}".replace(" ", "-")  # the server knows the lives before
        said: list[Any] = []
        for lap in range(wish.laps):
            said += [f"answer to {self.name} lap{lap}", f"lap{lap} done", True]
        notes = "".join(f"{3 * (lap + 1)} " for lap in range(wish.laps))
        asked = {"ledger": ground.ledger.url + self.name, "name": self.name, "laps": wish.laps}
        more = {"source": AGENT, "file": "laps.py", "function": "laps", "image": ground.image, "input": asked}
        policy = {"idle_grace_s": GRACE_S, "think_grace_s": NEVER_S}
        result = [said, notes]
        self.plan = Plan(self.name, nothing, RunState.COMPLETED, result, policy=policy, asleep=wish.asleep, more=more)

    async def run(self) -> VmOutcome:
        began, wrong = time.monotonic(), list[str]()
        killing = asyncio.create_task(self._kill_in_states() if self.wish.part else self._answer_all())
        living = asyncio.create_task(self.people.see_through(self.plan))
        try:
            async with asyncio.timeout(LIFE_S):
                await asyncio.wait({living, killing}, return_when=asyncio.FIRST_COMPLETED)
                if killing.done():
                    killing.result()
                [info] = await living
            wrong += await self._wrong(info)
        except TimeoutError:
            wrong.append(f"it had not ended after {LIFE_S:g} s: {self._killed}, {self.people.kinds[-5:]}")
        except PerdureError as error:
            wrong.append(f"somebody was refused what was asked for: {error}")
        finally:
            for holds, key, hold in self._held:
                hold.free.set()
                if holds.get(key) is hold:
                    del holds[key]
            for task in (killing, living):
                task.cancel()
            await asyncio.wait({killing, living})
        if wrong and (self.run_id or self.wish.part):
            await self._parts.clear("" if self.wish.part else self.run_id)
        killed = [(part, wished, self.people.state_at(moment)) for part, wished, moment in self._killed]
        return VmOutcome(self.wish, wrong, killed, time.monotonic() - began)

    async def _wrong(self, info: RunInfo) -> list[str]:
        found = await checks.of_run(self, self.plan, info)
        found += await hooked.wrong(self, [info])
        entries = await self.people.lineage(info.id)
        self.people.begin()  # again: nobody watched any more when the last ones came
        for entry in entries:
            self.people.note(entry.kind, entry.time)
        return found + await self._parts.left("" if self.wish.part else info.id)

    async def _answer_all(self) -> None:
        self.people.may_answer.update(f"lap{lap}?" for lap in range(self.wish.laps))
        self.run_id = await self._run_id()

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
            self._hold_at(self.provider.holds, f"{self.name} lap{lap}", hold)
        elif state in ("running", "recovering", *WARM):
            self._hold_at(self.outside.holds, (self.name, f"lap{lap}"), hold)
        return hold

    def _hold_at(self, holds: dict[Any, Hold], key: Any, hold: Hold) -> None:
        holds[key] = hold
        self._held.append((holds, key, hold))

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

    async def _run_id(self) -> str:
        while not self.run_id:
            known = await self.people.ask(lambda client: client.runs())
            if found := [info.id for info in known if info.key == self.name]:
                self.run_id = found[0]
            else:
                await asyncio.sleep(AGAIN_S)
        return self.run_id

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
            self.died(part, state, moment)
            if part in BELOW:
                self.deaths.append(Death(await self._run_id(), moment))

    # -- of a life at random

    def died(self, part: str, wished: str, moment: float) -> None:
        """A part that this run needs was killed."""
        self._killed.append((part, wished, moment))
        self._deaths = self.deaths_in_a_row + (part in BELOW)
        self._done = self.progress

    @property
    def deaths_in_a_row(self) -> int:
        """Of its machines, since its program last did anything: after some the server gives a run up."""
        return self._deaths if self.progress == self._done else 0

    @property
    def progress(self) -> int:
        """How much of its program is in the log."""
        return sum(not kind.startswith("run.") for kind in self.people.kinds)
