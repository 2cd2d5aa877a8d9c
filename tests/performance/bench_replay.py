"""The replay road beside DBOS: recorded steps one after the other, and their recovery, on the same SQLite and on the
same PostgreSQL, each fully synced.

A function takes N steps and waits for a signal. Live: the time of its steps. Recovery: its worker is killed (kill -9)
while it waits, and the time is taken until it waits there again. DBOS does the same (``dbos_steps``) in a process of
its own, and is killed whole: its recovery counts from its launch to the same place, without its imports. A part of that
is the launch itself, which is a figure of its own (the recovery of one step).
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from report import Report

from perdure.context import postgres
from perdure.host.paths import Home
from perdure.model import RunState
from perdure.runs.driver import Settings
from perdure.testing.postgres import PostgresServer, binaries, postgres_server
from perdure.testing.workers import WorkerHouse

STEPS = (1, 10, 100, 1000, 10_000)
POSTGRES_STEPS = (10, 1000, 10_000)
LIVE_STEPS = 1000
ROUNDS = 3
DBOS = Path(__file__).parents[2] / "build" / "dbos" / "bin" / "python"
SOURCE = """
import time

def f(ctx: Context, count: int):
    begun = time.perf_counter()
    for number in range(count):
        ctx.step("one", one, number)
    ctx.emit("took", time.perf_counter() - begun)
    ctx.wait_for("go")

def one(number):
    return number
"""


@dataclass(frozen=True)
class Times:
    """Seconds: of all steps, of each recovery."""

    live_s: float
    recover_s: float


def add(report: Report) -> None:
    """DBOS is left out where ``build/dbos`` has no Python with it."""
    if not DBOS.exists():
        print("  DBOS is not measured: make build/dbos.done installs it for this", file=sys.stderr)
    for steps in STEPS:
        _compare(report, steps)
    if binaries() is not None:
        with postgres_server() as server:
            for steps in POSTGRES_STEPS:
                _compare(report, steps, server)


def _compare(report: Report, steps: int, server: PostgresServer | None = None) -> None:
    """server: where it is not on SQLite; a database of its own for either."""
    where = " on PostgreSQL" if server else ""
    ours = asyncio.run(measure(steps, server.new_database() if server else ""))
    other = _dbos(steps, server.new_database() if server else "") if DBOS.exists() else None
    if steps == LIVE_STEPS:
        live = f"DBOS{where}: a recorded step, live"
        if other:
            report.add(live, other.live_s / steps, "s")
        over, goal = (live, "ratio <= 1") if other else ("", "")
        report.add(f"replay road{where}: a recorded step, live", ours.live_s / steps, "s", over=over, goal=goal)
    theirs = f"DBOS{where}: recovery of {steps} recorded steps"
    if other:
        report.add(theirs, other.recover_s, "s")
    over, goal = (theirs, "ratio <= 0.333") if other else ("", "")
    report.add(f"replay road{where}: recovery of {steps} recorded steps", ours.recover_s, "s", over=over, goal=goal)


async def measure(steps: int, database: str = "") -> Times:
    """Ours: one run, killed ``ROUNDS`` times. database: a PostgreSQL."""
    with tempfile.TemporaryDirectory() as name:
        opened = (lambda: postgres.open(database)) if database else None
        road = WorkerHouse(Home(Path(name) / "home", Path(name) / "cache"), open_log=opened)
        # It stays while it waits, as a kill is what is measured; and no pause for being killed again and again.
        road.settings = Settings(idle_grace_s=3600.0, backoff_s=0.0)
        await road.up()
        try:
            run_id = await road.start(SOURCE, {"count": steps})
            run = road.engine._runs[run_id]
            await run.until(lambda: run.state is RunState.WAITING)
            live_s = float((await road.entries(run_id, "emit"))[0].payload["value"])
            taken = []
            for nth in range(1, ROUNDS + 1):
                os.kill(road.worker(run_id), signal.SIGKILL)
                begun = time.perf_counter()
                await run.until(lambda nth=nth: run.record.recoveries == nth and run.state is RunState.WAITING)  # type: ignore[misc]
                taken.append(time.perf_counter() - begun)
            await road.engine.cancel(run_id, clean_up_s=0)
            return Times(live_s, statistics.median(taken))
        finally:
            await road.down()


def _dbos(steps: int, database: str) -> Times:
    with tempfile.TemporaryDirectory() as name:
        url = database.replace("postgresql:", "postgresql+psycopg:") or f"sqlite:///{Path(name) / 'dbos.sqlite'}"
        live_s = _told("live", url, steps)
        return Times(live_s, statistics.median(_told("recover", url, steps) for _ in range(ROUNDS)))


def _told(mode: str, database: str, steps: int) -> float:
    program = Path(__file__).with_name("dbos_steps.py")
    ran = subprocess.run(
        [DBOS, program, mode, database, str(steps)], stdout=subprocess.PIPE, text=True, timeout=1800, check=False
    )
    return float(ran.stdout.split()[-1])


if __name__ == "__main__":
    add(Report())
