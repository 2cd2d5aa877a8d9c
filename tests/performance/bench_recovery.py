"""How soon a run goes on, on the snapshot road: in real microVMs, with a real server on SQLite.

Recovery: a function makes N calls, is captured (``ctx.checkpoint``) and waits for a signal. Its Firecracker is killed
(kill -9) and the signal is sent; the time is from the order to kill it to the entry of the function's next call. All
runs stay warm side by side and are killed in turn, so that what the machine does otherwise is the same for each. Calls
that came after the snapshot are asked again: what these cost is a figure of its own.

Waking: from the request that completes a wait to the entry of the next call; of a machine that is warm, while nothing
else goes on, and of one that sleeps, which is measured in turn with a restore by unmodified Firecracker.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
from dataclasses import dataclass, field

from report import Report
from subject import Subject, served
from unmodified import RESTORE, Raw

from perdure.client.node import NodeClient
from perdure.client.server import ServerClient
from perdure.execution.machine.remote import Launcher
from perdure.host.paths import Home
from perdure.runs.policy import NEVER_S

CALLS = (10, 100, 1000, 10_000)
SINCE = 100  # calls after the snapshot
RECORD_S = 900.0  # so many calls as would take longer to record are not measured
ROUNDS = 5
WARM_ROUNDS = 20
SAID_S = 1.0  # that recording takes: from then on it is told beforehand
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
    resumed_s: float = 0.0
    recovered: dict[int, float] = field(default_factory=dict)


def measure(home: Home, node: NodeClient, launcher: Launcher, raw: Raw) -> Times:
    """What ``add`` tells, once it is known what raw.py took in all rounds."""
    times = Times()
    with served(home) as server:
        _wakes(server, node, raw, times)
        _recoveries(server, node, launcher, times)
    return times


def _wakes(server: ServerClient, node: NodeClient, raw: Raw, times: Times) -> None:
    warm = Subject(server, SOURCE, "waiting", NEVER_S)
    warm.reaches("wait.started")
    taken = []
    for _ in range(WARM_ROUNDS):
        taken.append(warm.goes_on(warm.signal)["emit"])
        warm.reaches("wait.started")
    warm.end()
    times.warm_s = statistics.median(taken)
    asleep = Subject(server, SOURCE, "waiting", 1.0)
    asleep.reaches("run.suspended")
    woken, restored = [], []
    for _ in range(ROUNDS):
        raw.round()
        woken.append(asleep.goes_on(asleep.signal)["emit"])
        restored.append(float(node.get(asleep.sandbox()).machine["phases"]["total_s"]))
        asleep.reaches("run.suspended")
    asleep.end()
    times.asleep_s, times.restore_s = statistics.median(woken), statistics.median(restored)


def _recoveries(server: ServerClient, node: NodeClient, launcher: Launcher, times: Times) -> None:
    runs: dict[int, Subject] = {}
    for count in CALLS:
        record_s = times.call_s * count
        if record_s > RECORD_S:
            print(f"  {count} calls are not measured: {record_s:.0f} s to record", file=sys.stderr)
            break
        if record_s > SAID_S:
            print(f"  recording {count} calls: {record_s:.0f} s", file=sys.stderr)
        run = runs[count] = Subject(server, SOURCE, "recorded", NEVER_S, before=count, since=0)
        begun = run.reaches("emit").time
        times.call_s = (run.reaches("emit", "recorded").time - begun) / count
        run.reaches("wait.started")
    later = Subject(server, SOURCE, "recorded", NEVER_S, before=CALLS[0], since=SINCE)
    later.reaches("wait.started")

    def lose(run: Subject) -> dict[str, float]:
        pid = node.get(run.sandbox()).machine["firecracker_pid"]

        def kill() -> None:
            if asyncio.run(launcher.run(["/bin/kill", "-9", str(pid)])) != 0:
                raise RuntimeError(f"Firecracker {pid} could not be killed")
            run.signal()

        found = run.goes_on(kill)
        found["resume"] = float(node.get(run.sandbox()).machine["phases"]["total_s"])
        run.reaches("wait.started")
        return found

    everybody = [*runs.values(), later]
    rounds = [[lose(run) for run in everybody] for _ in range(ROUNDS)]
    for run in everybody:
        run.end()
    kinds = ("emit", "run.recovering", "run.running", "resume")
    medians = [
        {kind: statistics.median(found[kind] for found in of_one) for kind in kinds}
        for of_one in zip(*rounds, strict=True)
    ]
    times.recovered = {count: found["emit"] for count, found in zip(runs, medians, strict=False)}
    longest, times.later_s = medians[-2], medians[-1]["emit"]
    times.noticed_s, times.restored_s = longest["run.recovering"], longest["run.running"]
    times.resumed_s = longest["resume"]


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
    report.add("snapshot road: recovery, of it: the node's resume", times.resumed_s, "s")
    report.add(f"snapshot road: recovery of {CALLS[0]}, and {SINCE} since the snapshot", times.later_s, "s", over=first)
    wakes = "from a signal to the next call"
    report.add(f"{wakes}: warm", times.warm_s, "s", goal="value <= 0.05")
    goal = "" if emulated else f"value <= {report.value(RESTORE) + 0.1:.3f}"
    report.add(f"{wakes}: asleep", times.asleep_s, "s", over=RESTORE, goal=goal)
    report.add(f"{wakes}: asleep, of it: the node's resume", times.restore_s, "s")
