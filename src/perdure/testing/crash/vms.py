"""``python -m perdure.testing.crash.vms`` (part of ``make crash``): the parts of a microVM are killed.

In each state of a run VM, keeper, pager, node and server are killed (SIGKILL), and then some at random instants. Exit
status 1 where anything did not hold. It writes build/crash-vms.json and its section of docs/crash-matrix.md. Where no
microVMs run, it says so, and that is no failure. What it is told by the environment:

    CRASH_VMS         kills at random instants (10); "no": none of all this
    CRASH_STATES      only in these states (running suspended …)
    CRASH_PARTS       only these (VM keeper pager node server)
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from perdure.cli.perdure._image import ensure_default
from perdure.client.node import NodeClient
from perdure.host import below
from perdure.host.paths import Home
from perdure.testing.crash import page
from perdure.testing.crash.ledger import REMOVE, WebLedger
from perdure.testing.crash.listener import Listener
from perdure.testing.crash.matrix import ProgressLine, Show
from perdure.testing.crash.parts import PARTS, Parts
from perdure.testing.crash.provider import CountingProvider
from perdure.testing.crash.serving import Death, Serving, write_settings
from perdure.testing.crash.vmlife import IN_LOG, NOT_THERE, STATES, Ground, VmLife, VmOutcome, VmWish
from perdure.testing.will import Will

HOME = Path("build/crash-home")
KILLS = 5  # at random instants, in one life

HEAD = """Of {revision}, on {host}: {lives} lives, {kills} kills, {wrong} wrong.

A real microVM in each life, and a run of laps: in each it asks a model, does a step that writes to a ledger outside,
and waits for a person. In a life one part is killed (SIGKILL) in each of the states, one a lap. Each cell: how often it
was; in brackets the state that the run was in already when the part was dead, where that is another one. -: there is no
such part then.

"""


@dataclass
class Asked:
    """What the environment asks for."""

    random: int = 10
    states: tuple[str, ...] = tuple(STATES)
    parts: tuple[str, ...] = PARTS
    is_wanted: bool = True

    @staticmethod
    def of(environ: Mapping[str, str]) -> Asked:
        count = environ.get("CRASH_VMS", "10")
        states, parts = (tuple(environ.get(name, "").split()) for name in ("CRASH_STATES", "CRASH_PARTS"))
        is_wanted = count != "no"
        return Asked(int(count) if is_wanted else 0, states or tuple(STATES), parts or PARTS, is_wanted)

    @property
    def is_whole(self) -> bool:
        return set(self.states) == set(STATES) and set(self.parts) == set(PARTS)

    def wishes(self) -> list[VmWish]:
        """Those that are no chance."""
        states = tuple(state for state in STATES if state in self.states)
        return [VmWish(part, states) for part in PARTS if part in self.parts]


@dataclass
class VmMatrix:
    asked: Asked
    outcomes: list[VmOutcome] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    is_emulated: bool = False

    async def run(self, home: Home, image: str, will: Will, show: Show) -> None:
        began, wishes = time.monotonic(), self.asked.wishes()
        self.is_emulated = below.status(home).emulated
        async with _ground(home, image, will, self.wrong) as ground:
            last = len(wishes) + self.asked.random  # of lives, also where nobody can be killed
            while wishes or (self._at_random < self.asked.random and len(self.outcomes) < last):
                wish = wishes.pop(0) if wishes else VmWish(kills=KILLS, seed=len(self.outcomes))
                outcome = await VmLife(ground, wish).run()
                self.outcomes.append(outcome)
                wrong = [f"{wish.name}: {what}" for what in outcome.wrong]
                self.wrong += wrong
                self.wrong += [f"{wish.name}: nobody was killed in {state}" for state in missed(outcome)]
                if wrong:
                    await ground.parts.clear()
                said = f"{len(self.outcomes)} lives, {len(self.wrong)} wrong, "
                show(f"{said}{wish.name} {outcome.killed}, {time.monotonic() - began:.0f} s", wrong)

    @property
    def _at_random(self) -> int:
        return sum(len(outcome.killed) for outcome in self.outcomes if outcome.wish.kills)

    def table(self) -> str:
        kills = sum(len(outcome.killed) for outcome in self.outcomes)
        host = "an emulated host" if self.is_emulated else "KVM"
        facts = {"revision": page.revision(), "host": host, "lives": len(self.outcomes), "kills": kills}
        lines = [HEAD.format(**facts, wrong=len(self.wrong))]
        lines.append("| state | the run | " + " | ".join(PARTS) + " |\n| --- | --- |" + " --- |" * len(PARTS) + "\n")
        for state, what in STATES.items():
            lines.append(f"| {state} | {what} | " + " | ".join(self._cell(state, part) for part in PARTS) + " |\n")
        wrong = {part: sum(len(o.wrong) for o in self.outcomes if o.wish.part == part) for part in PARTS}
        lines.append("| | wrong in these lives | " + " | ".join(str(wrong[part]) for part in PARTS) + " |\n")
        lives = [outcome for outcome in self.outcomes if outcome.wish.kills]
        killed = [part for outcome in lives for part, _, _ in outcome.killed]
        lines.append("\n| at random instants | lives | wrong | " + " | ".join(PARTS) + " |\n")
        lines.append("| --- | --- | --- |" + " --- |" * len(PARTS) + "\n")
        counts = " | ".join(str(killed.count(part)) for part in PARTS)
        lines.append(f"| SQLite | {len(lives)} | {sum(bool(o.wrong) for o in lives)} | {counts} |\n")
        return "".join(lines)

    def _cell(self, state: str, part: str) -> str:
        lives = [outcome for outcome in self.outcomes if outcome.wish.part == part]
        deaths = [was for outcome in lives for who, wished, was in outcome.killed if (who, wished) == (part, state)]
        there = sum(was == IN_LOG.get(state, state) for was in deaths)
        words = [str(there)] if there else []
        words += [f"({was})" for was in deaths if was != IN_LOG.get(state, state)]
        return " ".join(words) or "-"

    def to_json(self) -> str:
        lives = [{**asdict(outcome), "seconds": round(outcome.seconds, 1)} for outcome in self.outcomes]
        return json.dumps({"lives": lives, "wrong": self.wrong}, indent=1) + "\n"


def missed(outcome: VmOutcome) -> list[str]:
    """States in which nobody was killed, where somebody was to be."""
    part, met = outcome.wish.part, {state for _, state, _ in outcome.killed}
    return [state for state in outcome.wish.states if state not in met and part not in NOT_THERE.get(state, ())]


@asynccontextmanager
async def _ground(home: Home, image: str, will: Will, wrong: list[str]) -> AsyncIterator[Ground]:
    for path in home.root.glob("perdure.db*"):
        path.unlink()
    provider, listener, ledger, deaths = CountingProvider(), Listener(), WebLedger(), list[Death]()
    parts = Parts(home)
    await parts.clear()  # of a program that was killed
    for one in (provider, listener, ledger):
        await one.open()
    write_settings(home, provider=provider.url, hook=listener.url)
    serving = Serving(home, home.run / "perdured.log", {}, deaths, wrong, will=will)
    task = asyncio.create_task(serving.run())
    try:
        yield Ground(home, image, provider, listener, ledger, serving, deaths, parts)
    finally:
        await serving.end(task)
        for one in (provider, listener, ledger):
            await one.close()


def _missing(environ: Mapping[str, str]) -> str:
    """Why no microVM runs here, in words."""
    if not Asked.of(environ).is_wanted:
        return "CRASH_VMS=no"
    if os.geteuid() != 0:
        return "they need root"
    return ""


def main() -> int:
    if why := _missing(os.environ):
        print(f"nothing is killed of microVMs: {why}")
        return 0
    home = Home(HOME.absolute(), Home.find().cache).make()
    os.environ |= {"PERDURE_HOME": str(home.root), "PERDURE_CACHE": str(home.cache)}
    matrix, line = VmMatrix(Asked.of(os.environ)), ProgressLine()
    with Will() as will:
        will.run([sys.executable, "-m", "perdure.cli.perdure", "down"])
        will.run([sys.executable, "-m", "perdure.cli.fcrun", "host", "stop"])
        will.run(REMOVE)
        subprocess.run(REMOVE, check=False, capture_output=True)
        below.stop(home)  # which may have been started while the address was there
        image = ensure_default()
        subprocess.run([sys.executable, "-m", "perdure.cli.fcrun", "host", "start"], check=True)
        try:
            asyncio.run(matrix.run(home, image, will, line))
        finally:
            line.end()
            NodeClient(home).shutdown()
            below.stop(home)
    Path("build/crash-vms.json").write_text(matrix.to_json())
    table = matrix.table()
    if matrix.asked.is_whole:
        page.write(page.TITLES["vms"], table)
    print(table)
    for what in matrix.wrong:
        print(f"WRONG: {what}")
    print(f"{len(matrix.outcomes)} lives, {len(matrix.wrong)} wrong")
    return 1 if matrix.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
