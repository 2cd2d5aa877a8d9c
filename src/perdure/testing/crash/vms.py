"""``python -m perdure.testing.crash.vms`` (part of ``make crash``): the parts of a microVM are killed.

In each state of a run VM, keeper, pager, node and server are killed (SIGKILL), and then some at random instants, while
several runs live. Exit status 1 where anything did not hold. It writes build/crash-vms.json as it goes, and its
sections of docs/crash-matrix.md: after all states those of states, after two hundred kills those at random instants.
Where no microVMs run, it says so, and that is no failure. What it is told by the environment:

    CRASH_VMS         kills at random instants, on each database (10); "no": none of all this
    CRASH_STATES      only in these states (running suspended …); "no": in none, only at random
    CRASH_PARTS       only these (VM keeper pager node server)
    CRASH_DATABASE    only on these (sqlite postgres)
    CRASH_AT_ONCE     lives at once, of those at random (3)
    CRASH_GO_ON       1: with what build/crash-vms.json has, if it is of the same revision
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
from perdure.testing.crash import databases, page, vmtables
from perdure.testing.crash.atrandom import AtRandom, Kill
from perdure.testing.crash.databases import DATABASES, TITLES, server_of, words
from perdure.testing.crash.ledger import WebLedger, remove
from perdure.testing.crash.listener import Listener
from perdure.testing.crash.matrix import ProgressLine, Show
from perdure.testing.crash.parts import PARTS, Parts
from perdure.testing.crash.provider import CountingProvider
from perdure.testing.crash.serving import Death, Serving, write_settings
from perdure.testing.crash.vmlife import NOT_THERE, STATES, Ground, VmLife, VmOutcome, VmWish
from perdure.testing.will import Will

HOME = Path("build/crash-home")
RESULT = Path("build/crash-vms.json")
MANY = 200  # kills at random instants are worth a section of the page


@dataclass
class Asked:
    """What the environment asks for."""

    random: int = 10
    states: tuple[str, ...] = tuple(STATES)
    parts: tuple[str, ...] = PARTS
    databases: tuple[str, ...] = DATABASES
    at_once: int = 3
    is_wanted: bool = True

    @staticmethod
    def of(environ: Mapping[str, str]) -> Asked:
        count = environ.get("CRASH_VMS", "10")
        states = words(environ, "CRASH_STATES") or tuple(STATES)
        is_wanted = count != "no"
        return Asked(
            random=int(count) if is_wanted else 0,
            states=() if states == ("no",) else states,
            parts=words(environ, "CRASH_PARTS") or PARTS,
            databases=databases.asked(environ),
            at_once=int(environ.get("CRASH_AT_ONCE", "3")),
            is_wanted=is_wanted,
        )

    def titles(self, database: str) -> list[str]:
        """The sections of the page that are whole."""
        if set(self.parts) != set(PARTS):
            return []
        whole = {"states": set(self.states) == set(STATES), "random": self.random >= MANY}
        return [f"{what} {database}" for what, is_whole in whole.items() if is_whole]

    def wishes(self, database: str) -> list[VmWish]:
        """Those that are no chance."""
        states = tuple(state for state in STATES if state in self.states)
        return [VmWish(part, states, database) for part in PARTS if part in self.parts and states]


@dataclass
class VmMatrix:
    """``run`` it on each database; then ``wrong`` has everything that did not hold. ``result``: a file, replaced after
    each kill and life, so that what is cut off keeps what it has."""

    asked: Asked
    outcomes: list[VmOutcome] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)  # at random
    wrong: list[str] = field(default_factory=list)
    is_emulated: bool = False
    result: Path | None = None
    began: float = field(default_factory=time.monotonic)
    _of_servers: list[str] = field(default_factory=list)  # what was wrong with them

    async def run(self, home: Home, image: str, database: str, will: Will, show: Show) -> None:
        self.is_emulated = below.status(home).emulated
        with server_of(database, will) as server:
            url = "" if server is None else await asyncio.to_thread(server.new_database)
            async with _ground(home, image, will, self._of_servers, url) as ground:
                await self._in_states(ground, database, show)
                await self._at_random(ground, database, show)
            self._tell(show, database, "", [])

    async def _in_states(self, ground: Ground, database: str, show: Show) -> None:
        former = [outcome.wish for outcome in self.outcomes]
        for wish in (wish for wish in self.asked.wishes(database) if wish not in former):
            outcome = await VmLife(ground, wish).run()
            self.outcomes.append(outcome)
            wrong = [*outcome.wrong, *(f"nobody was killed in {state}" for state in missed(outcome))]
            wrong = [f"{database}, {wish.name}: {what}" for what in wrong]
            self.wrong += wrong
            self._tell(show, database, f"{wish.name} {outcome.killed}", wrong)

    async def _at_random(self, ground: Ground, database: str, show: Show) -> None:
        def tell(what: str, wrong: list[str]) -> None:
            self._tell(show, database, what, wrong)

        asked = self.asked
        at_random = AtRandom(ground, database, asked.at_once, self.kills, self.outcomes, self.wrong, tell, asked.parts)
        await at_random.run(asked.random - len(self._random_kills(database)))

    def _tell(self, show: Show, database: str, what: str, wrong: list[str]) -> None:
        of_servers = [f"{database}: {what}" for what in self._of_servers]
        self._of_servers.clear()
        self.wrong += of_servers
        wrong = of_servers + wrong
        if self.result is not None:
            self.result.parent.mkdir(exist_ok=True)
            fresh = self.result.with_suffix(".new")
            fresh.write_text(self.to_json())
            fresh.replace(self.result)
        kills = f"{len(self._random_kills(database))} of {self.asked.random} kills at random on {TITLES[database]}"
        said = f"{len(self.outcomes)} lives, {kills}, {len(self.wrong)} wrong, {time.monotonic() - self.began:.0f} s"
        show(f"{said}: {what}" if what else said, wrong)

    def _random_kills(self, database: str) -> list[Kill]:
        return [kill for kill in self.kills if kill.database == database]

    def tables(self, database: str) -> dict[str, str]:
        """By title in ``page.TITLES``."""
        host = "an emulated host" if self.is_emulated else "KVM"
        lives = [outcome for outcome in self.outcomes if outcome.wish.database == database]
        by_chance = [outcome for outcome in lives if not outcome.wish.part]
        in_states = [outcome for outcome in lives if outcome.wish.part]
        wrong = [what for what in self.wrong if what.startswith(database)]
        in_state = sum(what.startswith(tuple(f"{database}, {part}: " for part in PARTS)) for what in wrong)
        kills = self._random_kills(database)
        tables = {}
        if in_states:
            tables[f"states {database}"] = vmtables.in_states(in_states, in_state, host)
        if kills:
            rest, at_once = len(wrong) - in_state, self.asked.at_once
            tables[f"random {database}"] = vmtables.at_random(database, by_chance, kills, rest, host, at_once)
        return tables

    def to_json(self) -> str:
        lives = [{**asdict(outcome), "seconds": round(outcome.seconds, 1)} for outcome in self.outcomes]
        kills = [
            {"database": kill.database, "part": kill.part, "time": round(kill.moment, 3), "hit": kill.states}
            for kill in self.kills
        ]
        found = {"revision": page.revision(), "lives": lives, "kills": kills, "wrong": self.wrong}
        return json.dumps(found, indent=1) + "\n"

    def go_on(self, text: str) -> None:
        """With what a program before this one has written, if it was of the same revision. A kill counts if all runs
        that it hit were judged."""
        found = json.loads(text)
        if found.get("revision") != page.revision():
            return
        self.wrong += found["wrong"]
        for life in found["lives"]:
            killed = [(part, wished, state) for part, wished, state in life["killed"]]
            wish = VmWish(**{**life["wish"], "states": tuple(life["wish"]["states"])})
            self.outcomes.append(VmOutcome(wish, life["wrong"], killed, life["seconds"]))
        judged = {(outcome.wish.database, outcome.wish.name) for outcome in self.outcomes}
        for kill in found["kills"]:
            if all((kill["database"], life) in judged for life in kill["hit"]):
                self.kills.append(Kill(kill["database"], kill["part"], kill["time"], former=kill["hit"]))


def missed(outcome: VmOutcome) -> list[str]:
    """States in which nobody was killed, where somebody was to be."""
    part, met = outcome.wish.part, {state for _, state, _ in outcome.killed}
    return [state for state in outcome.wish.states if state not in met and part not in NOT_THERE.get(state, ())]


@asynccontextmanager
async def _ground(home: Home, image: str, will: Will, wrong: list[str], database: str) -> AsyncIterator[Ground]:
    """database: the url of an empty one of PostgreSQL."""
    for path in (*home.root.glob("perdure.db*"), home.root / "acknowledged"):
        path.unlink(missing_ok=True)
    provider, listener, ledger, deaths = CountingProvider(), Listener(), WebLedger(home), list[Death]()
    parts = Parts(home)
    await parts.clear()  # of a program that was killed
    for one in (provider, listener, ledger):
        await one.open()
    write_settings(home, provider=provider.url, hook=listener.url)
    environ = {"PERDURE_DATABASE": database}
    serving = Serving(home, home.run / "perdured.log", environ, deaths, wrong, will=will)
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
    matrix, line = VmMatrix(Asked.of(os.environ), result=RESULT), ProgressLine()
    if os.environ.get("CRASH_GO_ON", "") not in ("", "0") and RESULT.exists():
        matrix.go_on(RESULT.read_text())
    with Will() as will:
        will.run([sys.executable, "-m", "perdure.cli.perdure", "down"])
        will.run([sys.executable, "-m", "perdure.cli.fcrun", "host", "stop"])
        will.run(remove(home))
        subprocess.run(remove(home), check=False, capture_output=True)
        below.stop(home)  # which may have been started while the address was there
        image = ensure_default()
        subprocess.run([sys.executable, "-m", "perdure.cli.fcrun", "host", "start"], check=True)
        try:
            for database in matrix.asked.databases:
                asyncio.run(matrix.run(home, image, database, will, line))
                line.end()
                _write(matrix, database)
        finally:
            NodeClient(home).shutdown()
            below.stop(home)
    for what in matrix.wrong:
        print(f"WRONG: {what}")
    print(f"{len(matrix.outcomes)} lives, {len(matrix.kills)} kills at random, {len(matrix.wrong)} wrong")
    return 1 if matrix.wrong else 0


def _write(matrix: VmMatrix, database: str) -> None:
    for title, table in matrix.tables(database).items():
        if title in matrix.asked.titles(database):
            page.write(page.TITLES[title], table)
        print(table, flush=True)


if __name__ == "__main__":
    sys.exit(main())
