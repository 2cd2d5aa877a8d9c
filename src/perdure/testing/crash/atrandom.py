"""Kills at random instants on a ground where several runs live at once, each on its own microVM.

A kill of a VM, a keeper or a pager hits one of them, one of the node or the server all. What a kill hit is written down
with it: each life is judged by what died for it, and the table says in which state its run was.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from perdure.testing.crash.parts import BELOW, PARTS
from perdure.testing.crash.serving import Death
from perdure.testing.crash.vmlife import Ground, VmLife, VmOutcome, VmWish

PAUSE_S = (0.0, 3.0)  # between kills; before it
DONE = 6  # things that the programs do, at most,
DONE_S = 6.0  # or so long: all may be asleep, or on their way back
LOOK_S = 0.05
DEATHS_IN_A_ROW = 3  # of the machines of a run that could do nothing in between: the server gives it up after six
ROUND = 50  # kills; then all lives end, and nothing at all may be left below the line


@dataclass
class Kill:
    """One, at a random instant."""

    database: str
    part: str
    moment: float
    lives: list[VmLife] = field(default_factory=list)  # those that it hit
    former: dict[str, str] = field(default_factory=dict)  # the states, of a program before this one

    @property
    def states(self) -> dict[str, str]:
        """What the run of each life that it hit was then, as far as its log was read."""
        return self.former or {life.wish.name: life.people.state_at(self.moment) for life in self.lives}


@dataclass
class AtRandom:
    """``run`` it on a ground. ``kills``, ``outcomes`` and ``wrong`` are added to; ``tell`` hears of it each time, and
    of what was wrong."""

    ground: Ground
    database: str
    at_once: int
    kills: list[Kill]
    outcomes: list[VmOutcome]
    wrong: list[str]
    tell: Callable[[str, list[str]], None]
    parts: tuple[str, ...] = PARTS
    _lives: list[VmLife] = field(default_factory=list)
    _alive: list[VmLife] = field(default_factory=list)
    _left: int = 0  # kills of this round

    def __post_init__(self) -> None:
        former = [
            life.wish.seed for life in self.outcomes if not life.wish.part and life.wish.database == self.database
        ]
        self._seeds: Iterator[int] = itertools.count(max(former, default=-1) + 1)

    async def run(self, kills: int) -> None:
        chance = random.Random(f"{self.database} {kills}")
        while kills > 0:
            self._left = min(kills, ROUND)
            kills -= self._left
            lives = self._left  # at most, also where nobody can be killed
            killing = asyncio.create_task(self._kill_on(chance))
            places = [asyncio.create_task(self._live_on(lives)) for _ in range(self.at_once)]
            try:
                going = {killing, *places}
                while not going.isdisjoint(places):
                    over, going = await asyncio.wait(going, return_when=asyncio.FIRST_COMPLETED)
                    for task in over:
                        task.result()  # where who kills failed, nobody else would be killed in all these lives
                if self._left:
                    self._add([f"{self._left} kills found nobody"])
            finally:
                for task in (killing, *places):
                    task.cancel()
                await asyncio.wait({killing, *places})
            if left := await self.ground.parts.left():
                self._add(left)
                await self.ground.parts.clear()

    async def _live_on(self, most: int) -> None:
        """One life after the other, while there are kills."""
        for _ in range(most):
            if not self._left:
                return
            life = VmLife(self.ground, VmWish(database=self.database, seed=next(self._seeds)))
            self._lives.append(life)
            self._alive.append(life)
            outcome = await life.run()
            self._alive.remove(life)
            self.outcomes.append(outcome)
            self._add([f"{life.wish.name}: {what}" for what in outcome.wrong], life.wish.name)

    def _add(self, wrong: list[str], who: str = "") -> None:
        found = [f"{self.database}, {what}" for what in wrong]
        self.wrong += found
        self.tell(who, found)

    async def _kill_on(self, chance: random.Random) -> None:
        while self._left:
            await self._done(chance.randrange(DONE))
            await asyncio.sleep(chance.uniform(*PAUSE_S))
            part = chance.choice(self.parts)
            hit = await (self._kill_below(part, chance) if part in BELOW else self._kill_above(part))
            if hit is not None:
                self._left -= 1
                self.kills.append(hit)
                for life in hit.lives:
                    life.died(hit.part, "", hit.moment)
                self.tell(f"{hit.part} {sorted(hit.states.values())}", [])

    async def _done(self, more: int) -> None:
        """Until the programs have done so much more: instants are apart by what happens in between, and not by how long
        a busy machine takes for it."""
        wanted, deadline = self._progress + more, time.monotonic() + DONE_S
        while self._progress < wanted and time.monotonic() < deadline:  # noqa: ASYNC110 - the logs of several lives
            await asyncio.sleep(LOOK_S)

    @property
    def _progress(self) -> int:
        return sum(life.progress for life in self._lives)

    async def _kill_above(self, part: str) -> Kill | None:
        """The node, or the server."""
        is_killed = self.ground.serving.kill() if part == "server" else await self.ground.parts.kill_node()
        return Kill(self.database, part, time.time(), list(self._alive)) if is_killed else None

    async def _kill_below(self, part: str, chance: random.Random) -> Kill | None:
        """That part of any run that has one, or else another part."""
        lives = {life.run_id: life for life in self._alive if life.run_id and life.deaths_in_a_row < DEATHS_IN_A_ROW}
        runs = await self.ground.parts.runs()
        there = [(one, box) for box in sorted(runs) if runs[box] in lives for one in self.parts if one in BELOW]
        chance.shuffle(there)
        there.sort(key=lambda one: one[0] != part)
        killed = await self.ground.parts.kill_wished(there) if there else None
        if killed is None:
            return None  # all sleep, or are being born
        died, run = killed[0], runs[killed[1]]
        moment = time.time()
        self.ground.deaths.append(Death(run, moment))
        return Kill(self.database, died, moment, [lives[run]])
