"""How soon a run goes on, on the snapshot road: in real microVMs, with a real server on SQLite.

Recovery: a function makes N calls, is captured (``ctx.checkpoint``) and waits for a signal. Its Firecracker is killed
(kill -9) and the signal is sent; the time is from the order to kill it to the entry of the function's next call. All
runs stay warm side by side and are killed in turn, so that what the machine does otherwise is the same for each. Calls
that came after the snapshot are asked again: what these cost is a figure of its own.

Waking: from the request that completes a wait to the entry of the next call; of a machine that is warm, and of one that
sleeps, which is measured in turn with a restore by unmodified Firecracker.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from report import Report
from unmodified import RESTORE, Raw
from workload import DISK_MIB, IMAGE, MEMORY_MIB

from perdure.cli.perdure import _daemons
from perdure.client.node import NodeClient
from perdure.client.server import ServerClient
from perdure.execution.machine.remote import Launcher
from perdure.host.paths import Home
from perdure.model import Entry
from perdure.runs.policy import NEVER_S

CALLS = (10, 100, 1000, 10_000)
SINCE = 100  # calls after the snapshot
RECORD_S = 120.0  # so many calls as would take longer to record are not measured
ROUNDS = 5
SOURCE = """
from perdure import agent

@agent()
def recorded(ctx, before, since):
    for number in range(before):
        ctx.emit("call", number)
    ctx.emit("recorded")
    while True:
        ctx.checkpoint()
        for number in range(since):
            ctx.emit("call", number)
        ctx.wait_for("go")
        ctx.emit("on")

@agent()
def waiting(ctx):
    while True:
        ctx.wait_for("go")
        ctx.emit("on")
"""


@dataclass
class Times:
    """Seconds, medians. ``recovered``: by the number of calls."""

    call_s: float = 0.0
    warm_s: float = 0.0
    asleep_s: float = 0.0
    restore_s: float = 0.0
    later_s: float = 0.0
    noticed_s: float = 0.0
    restored_s: float = 0.0
    recovered: dict[int, float] = field(default_factory=dict)


class Subject:
    """A run that goes on at each signal, and how far its log was looked at."""

    def __init__(self, server: ServerClient, function: str, idle_grace_s: float, **given: int) -> None:
        policy = {"idle_grace_s": idle_grace_s}
        size = {"memory_mib": MEMORY_MIB, "disk_mib": DISK_MIB}
        what = {"source": SOURCE, "file": "recovery.py", "function": function, "input": given}
        self._server = server
        self.id = server.start(**what, **size, image=IMAGE, policy=policy).id  # type: ignore[arg-type]  # by name
        self.seq = 0

    def reaches(self, kind: str, name: str = "") -> Entry:
        """The next entry of a kind. Raises RuntimeError when the run ends before it."""
        for entry in self._server.entries(self.id, after=self.seq, follow=True, kind=kind):
            self.seq = entry.seq
            if not name or entry.payload["name"] == name:
                return entry
        raise RuntimeError(f"run {self.id} ended before {kind}: {self._server.get(self.id).error}")

    def goes_on(self, act: Callable[[], object]) -> dict[str, float]:
        """Seconds from ``act`` to each kind of entry, up to the next call: the entries' own times, by this clock."""
        before, begun = self.seq, time.time()
        act()
        self.reaches("emit", "on")
        entries = self._server.entries(self.id, after=before)
        return {entry.kind: entry.time - begun for entry in entries if entry.seq <= self.seq}

    def signal(self) -> None:
        self._server.signal(self.id, "go")

    def sandbox(self) -> str:
        return self._server.get(self.id).sandbox_id

    def end(self) -> None:
        self._server.cancel(self.id, force=True)


def measure(home: Home, node: NodeClient, launcher: Launcher, raw: Raw) -> Times:
    """What ``add`` tells, once it is known what raw.py took in all rounds."""
    times = Times()
    with _served(home) as server:
        _wakes(server, node, raw, times)
        _recoveries(server, node, launcher, times)
    return times


@contextlib.contextmanager
def _served(home: Home) -> Iterator[ServerClient]:
    """A server with an empty log."""
    for path in home.root.glob("perdure.db*"):
        path.unlink()
    _daemons.start_server(home)
    try:
        yield ServerClient(home)
    finally:
        _daemons._stop_server(home)


def _wakes(server: ServerClient, node: NodeClient, raw: Raw, times: Times) -> None:
    warm, asleep = Subject(server, "waiting", NEVER_S), Subject(server, "waiting", 1.0)
    warm.reaches("wait.started")
    asleep.reaches("run.suspended")
    found: dict[str, list[float]] = {"warm": [], "asleep": [], "restore": []}
    for _ in range(ROUNDS):
        raw.round()
        found["asleep"].append(asleep.goes_on(asleep.signal)["emit"])
        found["restore"].append(float(node.get(asleep.sandbox()).machine["phases"]["total_s"]))
        asleep.reaches("run.suspended")
        found["warm"].append(warm.goes_on(warm.signal)["emit"])
        warm.reaches("wait.started")
    times.warm_s, times.asleep_s, times.restore_s = (statistics.median(taken) for taken in found.values())
    for run in (warm, asleep):
        run.end()


def _recoveries(server: ServerClient, node: NodeClient, launcher: Launcher, times: Times) -> None:
    runs: dict[int, Subject] = {}
    for count in CALLS:
        if times.call_s * count > RECORD_S:
            print(f"  {count} calls are not measured: {times.call_s * count:.0f} s to record", file=sys.stderr)
            break
        run = runs[count] = Subject(server, "recorded", NEVER_S, before=count, since=0)
        begun = run.reaches("emit").time
        times.call_s = (run.reaches("emit", "recorded").time - begun) / count
        run.reaches("wait.started")
    later = Subject(server, "recorded", NEVER_S, before=CALLS[0], since=SINCE)
    later.reaches("wait.started")

    def lose(run: Subject) -> dict[str, float]:
        pid = node.get(run.sandbox()).machine["firecracker_pid"]

        def kill() -> None:
            if asyncio.run(launcher.run(["/bin/kill", "-9", str(pid)])) != 0:
                raise RuntimeError(f"Firecracker {pid} could not be killed")
            run.signal()

        found = run.goes_on(kill)
        run.reaches("wait.started")
        return found

    everybody = [*runs.values(), later]
    rounds = [[lose(run) for run in everybody] for _ in range(ROUNDS)]
    for run in everybody:
        run.end()
    medians = [
        {kind: statistics.median(found[kind] for found in of_one) for kind in ("emit", "run.recovering", "run.running")}
        for of_one in zip(*rounds, strict=True)
    ]
    times.recovered = {count: found["emit"] for count, found in zip(runs, medians, strict=False)}
    longest, times.later_s = medians[-2], medians[-1]["emit"]
    times.noticed_s, times.restored_s = longest["run.recovering"], longest["run.running"]


def add(report: Report, times: Times, *, emulated: bool) -> None:
    """All figures; after those of raw.py."""
    report.add("snapshot road: a recorded call, live", times.call_s, "s")
    first = ""
    for count, recovered_s in times.recovered.items():
        name = f"snapshot road: recovery of {count} recorded calls"
        report.add(name, recovered_s, "s", over=first, goal="ratio <= 1.5" if first else "")
        first = first or name
    report.add("snapshot road: recovery, of it: until it is noticed", times.noticed_s, "s")
    report.add("snapshot road: recovery, of it: until it is restored", times.restored_s, "s")
    report.add(f"snapshot road: recovery of {CALLS[0]}, and {SINCE} since the snapshot", times.later_s, "s", over=first)
    wakes = "from a signal to the next call"
    report.add(f"{wakes}: warm", times.warm_s, "s", goal="value <= 0.05")
    goal = "" if emulated else f"value <= {report.value(RESTORE) + 0.1:.3f}"
    report.add(f"{wakes}: asleep", times.asleep_s, "s", over=RESTORE, goal=goal)
    report.add(f"{wakes}: asleep, of it: the node's resume", times.restore_s, "s")
