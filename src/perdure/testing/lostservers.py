"""``python -m perdure.testing.lostservers --runs 200``: servers and their PostgreSQL are killed and stopped at random.

Some perdured share a database, and runs on the replay road ask a model, do steps that write a line into a ledger
outside, sleep, and wait for a signal; every third one waits in a queue before. Meanwhile servers are killed (SIGKILL),
stopped for longer than their lease lasts (SIGSTOP, SIGCONT), ended in order, and the database is killed. At the end, of
each run: its entries are dense and their chain holds, it was queued once and ended once, with the right result; no
provider was asked again for a turn that was acknowledged, and no step was done again that had ended. And the queue's
limit held at each moment. Exit status 1 where something does not hold.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perdure.client.server import ENDED
from perdure.errors import Conflict, PerdureError, Unavailable
from perdure.model import Entry, RunState
from perdure.testing.crash import page
from perdure.testing.fleet import LOST_S, Fleet, Server, fleet
from perdure.testing.will import Will

PARTS = 3  # turns and steps of each run
END_S = 120.0  # after the last blow, until all runs have ended
STARTERS = 4
WHOLE = 200  # runs, for the page of results
HEAD = """Of {revision}: {did}; {wrong} wrong.

Servers are killed, stopped for longer than their lease lasts and ended, and their PostgreSQL is killed, at random,
while runs on the replay road ask a model, do steps, sleep and wait for a signal, every third of them in a queue.
"""
QUEUE, QUEUED_EACH = "narrow", 3  # every third run is of the queue

AGENT = """
import time
from perdure import Context, agent

LEDGER = {ledger!r}

def mark(line):
    with open(LEDGER, "a") as file:
        file.write(f"{{line}} {{time.time()}}\\n")
    return line

@agent(durability="replay")
def main(ctx: Context, name: str, parts: int):
    said = []
    for part in range(parts):
        said.append(ctx.chat(f"{{name}}.{{part}}").text)
        said.append(ctx.step("mark", mark, f"{{name}}.{{part}}"))
        ctx.sleep(1.0)
    said.append(ctx.wait_for("go"))
    return said
"""


@dataclass
class Blows:
    """What was done to whom."""

    chance: random.Random
    fleet: Fleet
    over: threading.Event = field(default_factory=threading.Event)
    done: Counter[str] = field(default_factory=Counter)

    def run(self) -> None:
        """One blow after the other until ``over``; then everything is up."""
        while not self.over.wait(self.chance.uniform(0.3, 1.5)):
            what = self.chance.choices(("kill", "stop", "end", "database"), (5, 4, 2, 2))[0]
            self.done[what] += 1
            server = self.chance.choice(self.fleet.servers)
            if what == "database":
                self.fleet.database.kill()
                self.over.wait(self.chance.uniform(0.0, 1.0))
                self.fleet.database.start()
            elif what == "stop":
                server.stop()
                self.over.wait(self.chance.uniform(0.2, 3 * LOST_S))
                server.go_on()
            else:
                (server.kill if what == "kill" else server.down)()
                self.over.wait(self.chance.uniform(0.0, 2 * LOST_S))
                server.start()
            for other in self.fleet.servers:
                if not other.is_up:  # it could not start while the database was away
                    other.start()


class People:
    """Start runs, and send each its signal, through whichever server answers."""

    def __init__(self, fleet: Fleet, source: str, count: int, seed: int) -> None:
        self._fleet = fleet
        self._source = source
        self._names = [f"run{number}" for number in range(count)]
        self._seed = seed
        self.runs: dict[str, str] = {}  # name -> id
        self.wrong: list[str] = []

    def work(self) -> None:
        threads = [threading.Thread(target=self._some, args=[number]) for number in range(STARTERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _some(self, number: int) -> None:
        chance = random.Random(f"{self._seed}/{number}")
        try:
            for name in self._names[number::STARTERS]:
                self.runs[name] = self._start(chance, name)
                self._signal(chance, name)
            for name in self._names[number::STARTERS]:
                self._see_end(chance, name)
        except Exception as error:
            self.wrong.append(f"person {number}: {error!r}")

    def _start(self, chance: random.Random, name: str) -> str:
        given = {"name": name, "parts": PARTS}
        what = {"source": self._source, "file": "agent.py", "function": "main", "input": given, "key": name}
        if self.is_queued(name):
            what["queue"] = QUEUE
        return str(self._ask(chance, lambda server: server.client.start(**what, durability="replay").id))

    def is_queued(self, name: str) -> bool:
        return self._names.index(name) % QUEUED_EACH == 0

    def _signal(self, chance: random.Random, name: str) -> None:
        self._ask(chance, lambda server: server.client.signal(self.runs[name], "go", name, id=name))

    def _see_end(self, chance: random.Random, name: str) -> None:
        deadline = time.monotonic() + END_S
        while self._ask(chance, lambda server: server.client.get(self.runs[name], wait_s=1.0).state) not in ENDED:
            if time.monotonic() > deadline:
                raise TimeoutError(f"run {name} ({self.runs[name]}) does not end")

    def _ask(self, chance: random.Random, ask: Any) -> Any:
        """Of a server that is not stopped, again until one answers: all this may be asked twice."""
        deadline = time.monotonic() + END_S
        while True:
            servers = [server for server in self._fleet.servers if server.is_up and not server.is_stopped]
            try:
                if servers:
                    return ask(chance.choice(servers))
            except (Unavailable, Conflict, OSError) as error:
                if time.monotonic() > deadline:
                    raise
                if isinstance(error, Conflict) and not isinstance(error, Unavailable):
                    raise
            time.sleep(0.05)


def wrong_with(name: str, run_id: str, server: Server, fleet: Fleet, ledger: dict[str, list[float]]) -> list[str]:
    """What does not hold of one run, in words."""
    info = server.client.get(run_id, wait_s=END_S)
    entries = list(server.client.entries(run_id))
    said = [f"run {name} ({run_id}): {what}" for what in _of_log(entries)]
    if info.state is not RunState.COMPLETED:
        return [*said, f"run {name} ({run_id}) is {info.state}: {info.error}"]
    expected: list[Any] = []
    for part in range(PARTS):
        expected += [f"answer to {name}.{part}", f"{name}.{part}"]
    if info.result != [*expected, name]:
        said.append(f"run {name} ({run_id}) has the result {info.result}")
    try:
        server.client.verify(run_id)
    except PerdureError as error:
        said.append(f"run {name} ({run_id}): {error}")
    for part in range(PARTS):
        started = [e for e in entries if e.kind == "model.started" and e.key == _turn(entries, f"{name}.{part}")]
        if fleet.provider.asked[f"{name}.{part}"] > len(started):
            said.append(f"run {name}: turn {part} was asked for more often than its log says")
        ended = [e.time for e in entries if e.kind == "step.result"][part : part + 1]
        done = ledger.get(f"{name}.{part}", [])
        if not done or any(at > end for at in done for end in ended):
            said.append(f"run {name}: step {part} was done at {done}, and had ended at {ended}")
    return said


def _turn(entries: list[Entry], asked: str) -> str | None:
    """The key of the turn that asks this."""
    intents = [e for e in entries if e.kind == "model.intent" and e.payload["messages"][-1]["content"] == asked]
    return intents[0].key if intents else None


def _of_log(entries: list[Entry]) -> list[str]:
    said = []
    if [entry.seq for entry in entries] != list(range(1, len(entries) + 1)):
        said.append("its entries are not dense")
    kinds = Counter(entry.kind for entry in entries)
    for kind in ("run.queued", "run.completed"):
        if kinds[kind] != 1:
            said.append(f"{kinds[kind]} entries {kind}")
    committed: set[str | None] = set()
    for entry in entries:
        if entry.kind == "model.committed":
            committed.add(entry.key)
        elif entry.kind == "model.started" and entry.key in committed:
            said.append(f"entry {entry.seq}: {entry.key} was asked again, though its answer was acknowledged")
    results = Counter(entry.key for entry in entries if entry.kind == "step.result")
    said += [f"step {key} has {count} results" for key, count in results.items() if count > 1]
    return said


def over_limit(logs: list[list[Entry]], most: int) -> list[str]:
    """Whether more of these runs were active at once than the queue lets begin. One clock has written all entries."""
    moves, active = [], 0
    for entries in logs:
        moves.append((next(entry.time for entry in entries if entry.kind == "run.starting"), 1))
        moves += [(entry.time, -1) for entry in entries if entry.kind == "run.completed"]
    said = []
    for at, move in sorted(moves):
        active += move
        if active > most:
            said.append(f"{active} runs of the queue were active at {at}, not {most}")
    return said


def read_ledger(path: Path) -> dict[str, list[float]]:
    """When each line was written."""
    found: dict[str, list[float]] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        name, at = line.split()
        found.setdefault(name, []).append(float(at))
    return found


def lose(folder: Path, *, runs: int, servers: int, seed: int, will: Will | None = None) -> tuple[list[str], str]:
    """What did not hold, and what was done, in words."""
    began, ledger = time.monotonic(), folder / "ledger"
    with fleet(folder, servers, will=will) as made:
        blows = Blows(random.Random(seed), made)
        people = People(made, AGENT.format(ledger=str(ledger)), runs, seed)
        most = max(2, runs // 12)
        made.servers[0].client.queues.create(QUEUE, concurrency=most)
        beating = threading.Thread(target=blows.run)
        beating.start()
        try:
            people.work()
        finally:
            blows.over.set()
            beating.join()
        wrong = list(people.wrong)
        if not wrong:
            server = made.servers[0]
            server.down()
            server.up()
            for name, run_id in people.runs.items():
                wrong += wrong_with(name, run_id, server, made, read_ledger(ledger))
            queued = [run_id for name, run_id in people.runs.items() if people.is_queued(name)]
            wrong += over_limit([list(server.client.entries(run_id)) for run_id in queued], most)
        taken = sum(other.log.count(" is lost: ") for other in made.servers)
        anew = sum(other.log.count("has lost its lease") for other in made.servers)
        if wrong:
            wrong += [f"{other.home.root}: {other.log[-3000:]}" for other in made.servers]
    did = ", ".join(f"{count} {what}" for what, count in sorted(blows.done.items()))
    took_s = time.monotonic() - began
    return wrong, f"{runs} runs, {servers} servers: {did}; {taken} leases lost, {anew} begun anew; {took_s:.0f} s"


def main() -> int:
    parser = argparse.ArgumentParser(prog="lostservers", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--servers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    with Will() as will, tempfile.TemporaryDirectory(prefix="perdure-lost-") as folder:
        will.remove(Path(folder))
        wrong, did = lose(Path(folder), runs=options.runs, servers=options.servers, seed=options.seed, will=will)
    if options.runs >= WHOLE and page.PAGE.parent.is_dir():
        page.write(page.TITLES["servers"], HEAD.format(revision=page.revision(), did=did, wrong=len(wrong)))
    for what in wrong:
        print(f"WRONG: {what}")
    print(f"{did}; seed {options.seed}; {len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
