"""All lives of the matrix, as many at once as there are processors, and the table of what came of them."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from perdure.context.faults import MOMENTS
from perdure.context.points import EVERY, POINTS
from perdure.testing.crash import databases
from perdure.testing.crash.life import Life, Outcome, Wish
from perdure.testing.crash.page import revision
from perdure.testing.postgres import PostgresServer
from perdure.testing.will import Will

Show = Callable[[str, list[str]], None]  # how far it is, and what was wrong in the last life

AFTER_A_DEATH = ("lease.remove", "lease.take")  # the server that follows on a dead one comes by
A_DEATH = "wait.started:after:4"  # in the middle: it leaves runs
TIMES = {1: "the first write of a name", 2: "the first and the last write of a name"}
KILLS = 8  # at random instants, in one life
SHOWN_EVERY_S = 5.0  # where standard error is no terminal

HEAD = """Of {revision}: {lives} lives, {deaths} deaths of servers and machines, {wrong} wrong.

Each cell: lives in which the server was killed at that write, and how many of them broke an invariant. *before*: the
transaction was not committed; *after*: it was, and nobody had been told. A server dies at {times}.
Machines die, too: some programs lose theirs on purpose.

"""


@dataclass
class Asked:
    """What the environment asks for."""

    points: tuple[str, ...] = ()  # prefixes
    databases: tuple[str, ...] = ()
    random: int = 200  # instants on each database
    times: int = 3  # how many of the writes of one name
    at_once: int = 2
    keep: bool = False  # folders of lives in which something was wrong

    @staticmethod
    def of(environ: Mapping[str, str]) -> Asked:
        return Asked(
            points=databases.words(environ, "CRASH_POINTS"),
            databases=databases.asked(environ),
            random=int(environ.get("CRASH_RANDOM", "200")),
            times=int(environ.get("CRASH_TIMES", "3")),
            at_once=int(environ.get("CRASH_AT_ONCE", str(len(os.sched_getaffinity(0))))),
            keep=environ.get("CRASH_KEEP", "") not in ("", "0"),
        )

    @property
    def is_whole(self) -> bool:
        """On its databases."""
        return not self.points and self.random >= 200


@dataclass
class Matrix:
    """``run`` it; then ``wrong`` has everything that did not hold, by life."""

    asked: Asked
    outcomes: list[Outcome] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    postgres: PostgresServer | None = None  # while its lives are lived
    will: Will | None = None  # of the program
    planned: int = 0
    began: float = field(default_factory=time.monotonic)
    _shown: float = 0.0

    async def run(self, show: Show) -> None:
        for database in self.asked.databases:
            with databases.server_of(database, self.will) as self.postgres:
                await self._run_on(database, show)

    async def _run_on(self, database: str, show: Show) -> None:
        first = await self._live([Wish(database=database)], show)
        await self._live(list(self._wishes(database, Counter(first[0].points))), show)
        instants, seed = 0, 0
        while instants < self.asked.random:
            batch = [Wish(database=database, kills=KILLS, seed=seed + n) for n in range(2 * self.asked.at_once)]
            seed += len(batch)
            instants += sum(outcome.random_deaths for outcome in await self._live(batch, show))
        lives = [outcome for outcome in self.outcomes if outcome.wish.database == database]
        found = compare(database, (point for outcome in lives for point in outcome.points))
        self.wrong += [f"{database}: {what}" for what in found]
        for point in self._points(database):
            for moment in MOMENTS:
                if not any(o.is_reached for o in self._lives(database, point, moment)):
                    self.wrong.append(f"{database}: no server died at {point}:{moment}")

    def _wishes(self, database: str, counts: Mapping[str, int]) -> Iterable[Wish]:
        for point in self._points(database):
            last = max(counts.get(point, 1), 1)
            chosen = sorted({1 + (last - 1) * n // max(self.asked.times - 1, 1) for n in range(self.asked.times)})
            for moment in MOMENTS:
                for number in chosen:
                    crash = f"{point}:{moment}:{number}"
                    before = A_DEATH if point in AFTER_A_DEATH else ""
                    yield Wish(database=database, crash=crash, before=before)

    async def _live(self, wishes: list[Wish], show: Show) -> list[Outcome]:
        self.planned += len(wishes)
        room = asyncio.Semaphore(self.asked.at_once)

        async def one(wish: Wish) -> Outcome:
            async with room:
                url = "" if self.postgres is None else await asyncio.to_thread(self.postgres.new_database)
                outcome = await live(wish, url, keep=self.asked.keep, will=self.will)
            self.outcomes.append(outcome)
            wrong = [f"{wish.database}, {wish.name}: {what}" for what in outcome.wrong]
            self.wrong += wrong
            self._show(show, wrong)
            return outcome

        return list(await asyncio.gather(*(one(wish) for wish in wishes)))

    def _show(self, show: Show, wrong: list[str]) -> None:
        done, deaths = len(self.outcomes), sum(len(outcome.deaths) for outcome in self.outcomes)
        took = time.monotonic() - self.began
        show(f"{done} of {self.planned} lives, {deaths} deaths, {len(self.wrong)} wrong, {took:.0f} s", wrong)

    def table(self, database: str) -> str:
        """The matrix on one database as Markdown."""
        lives = [outcome for outcome in self.outcomes if outcome.wish.database == database]
        deaths, wrong = sum(len(o.deaths) for o in lives), sum(what.startswith(database) for what in self.wrong)
        facts = {"revision": revision(), "lives": len(lives), "deaths": deaths, "wrong": wrong}
        times = TIMES.get(self.asked.times, f"{self.asked.times} of the writes of a name, from the first to the last")
        lines = [HEAD.format(**facts, times=times)]
        lines.append("| point | the server dies while | " + " | ".join(MOMENTS) + " |\n| --- | --- | --- | --- |\n")
        for point, what in rows(database).items():
            cells = " | ".join(self._cell(database, point, moment) for moment in MOMENTS)
            lines.append(f"| `{point}` | {what} | {cells} |\n")
        lives = [outcome for outcome in lives if outcome.wish.kills]
        servers = sum(death.who == "server" for o in lives for death in o.deaths)
        instants, machines = sum(o.random_deaths for o in lives), sum(len(o.deaths) for o in lives) - servers
        lines.append("\n| at random instants | lives | servers killed | machines killed | wrong |\n")
        lines.append("| --- | --- | --- | --- | --- |\n")
        lines.append(f"| {instants} | {len(lives)} | {servers} | {machines} | {sum(bool(o.wrong) for o in lives)} |\n")
        return "".join(lines)

    def _cell(self, database: str, point: str, moment: str) -> str:
        lives = self._lives(database, point, moment)
        reached, wrong = sum(o.is_reached for o in lives), sum(bool(o.wrong) for o in lives)
        return (f"{reached}" if reached else "-") + (f", **{wrong} wrong**" if wrong else "")

    def _lives(self, database: str, point: str, moment: str) -> list[Outcome]:
        """Those whose server was to die there."""
        begin = f"{point}:{moment}:"
        return [o for o in self.outcomes if o.wish.database == database and o.wish.crash.startswith(begin)]

    def _points(self, database: str) -> list[str]:
        """Those that are asked for."""
        return [point for point in rows(database) if not self.asked.points or point.startswith(self.asked.points)]

    def to_json(self) -> str:
        lives = [
            {**asdict(o.wish), "seconds": round(o.seconds, 2), "deaths": len(o.deaths), "wrong": o.wrong}
            for o in self.outcomes
        ]
        return json.dumps({"lives": lives, "wrong": self.wrong}, indent=1) + "\n"


def rows(database: str) -> dict[str, str]:
    """The points that the lives on a database come by."""
    return EVERY if database == "postgres" else POINTS


def compare(database: str, points: Iterable[str]) -> list[str]:
    """What lives wrote, against the rows of the matrix."""
    reached = set(points)
    found = [f"{point} is written, and has no row in the matrix" for point in sorted(reached - set(rows(database)))]
    return found + [f"no life on {database} comes by {point}" for point in sorted(set(rows(database)) - reached)]


async def live(wish: Wish, database: str = "", *, keep: bool = False, will: Will | None = None) -> Outcome:
    """One life in a folder of its own. database: the url of an empty one of PostgreSQL."""
    folder = Path(tempfile.mkdtemp(prefix="crash-"))  # short: sockets have their paths in it
    if will is not None:
        will.remove(folder)
    outcome = await Life(folder, wish, database=database, will=will).run()
    if outcome.wrong and keep:
        outcome.wrong.append(f"its folder is {folder}")
    else:
        await asyncio.to_thread(shutil.rmtree, folder)
    if will is not None:
        will.keep(folder)
    return outcome


class ProgressLine:
    """On a terminal one line that changes; else one now and then."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._shown = 0.0

    def __call__(self, text: str, wrong: list[str]) -> None:
        clear = "\r\x1b[K" if self._is_terminal else ""
        sys.stderr.write("".join(f"{clear}WRONG: {what}\n" for what in wrong))
        if self._is_terminal:
            sys.stderr.write(f"\r\x1b[K{text}")
        elif time.monotonic() - self._shown >= SHOWN_EVERY_S:
            sys.stderr.write(text + "\n")
            self._shown = time.monotonic()
        sys.stderr.flush()

    def end(self) -> None:
        if self._is_terminal:
            sys.stderr.write("\n")
