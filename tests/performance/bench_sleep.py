"""Runs that sleep: what 10,000 of them cost the server in memory, and how soon one goes on when it is wanted.

    python tests/performance/bench_sleep.py [COUNT]        prints the figures

A real engine on a real SQLite file; machines only ask for their wait, are "captured" at once, and say when they are
restored. So the figures are the server's own, from the signal (or the deadline) to the call that restores a machine.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
from report import HEAD, Report

from perdure.context.sqlite import open as open_log
from perdure.errors import PerdureError, StaleEpoch, Unavailable
from perdure.gateway.gateway import Gateway
from perdure.gateway.providers import Providers, RemoteProvider
from perdure.model import (
    Call,
    CallsEndpoint,
    LogPosition,
    NodeEvent,
    OutputPiece,
    SandboxInfo,
    SandboxSpec,
    SandboxState,
    SnapshotInfo,
)
from perdure.runs.driver import Settings
from perdure.runs.engine import Engine
from perdure.runs.ports import MachinePlan, Sandbox
from perdure.runs.record import StartRequest

COUNT = 10_000
AT_ONCE = 200  # that are started
WAKES = 300  # by signals, one after the other
TIMED, SPREAD_S = 500, 10.0  # that wait for a moment, and how far those are apart together
AFTER_S = 60.0  # from the start of the timed ones to the first moment


class Sleepers:
    """``runs.ports.Machines``: each asks for one wait, and ends when it is restored."""

    node = None  # nothing is found again

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.woken: dict[str, float] = {}  # by run: when
        self.wakes: dict[str, asyncio.Event] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}

    async def start(self, plan: MachinePlan, calls: CallsEndpoint) -> str:
        body = msgspec.json.encode({"kind": "signal", "name": "go"})
        if "UNTIL" in plan.env:
            body = msgspec.json.encode({"kind": "time", "until": float(plan.env["UNTIL"])})
        self._ask(calls, "wait", body)
        return plan.run_id

    def _ask(self, calls: CallsEndpoint, name: str, body: bytes) -> None:
        call = Call(
            calls.run_id, calls.epoch, "main", 0 if name == "wait" else 1, "POST", f"/perdure/v1/{name}", {}, body
        )

        async def ask() -> None:
            while True:
                try:
                    assert self.engine is not None
                    await self.engine.answer(call, calls.token)
                    return
                except StaleEpoch:
                    return
                except (Unavailable, PerdureError):
                    await asyncio.sleep(0.05)

        task = self._asking[calls.run_id] = asyncio.create_task(ask())
        task.add_done_callback(lambda _: self._asking.pop(calls.run_id, None))

    async def suspend(self, sandbox_id: str, position: LogPosition) -> SnapshotInfo:
        if (task := self._asking.pop(sandbox_id, None)) is not None:
            task.cancel()
        return SnapshotInfo(digest="sha256:0", sandbox_id=sandbox_id, created=time.time(), position=position)

    async def resume(self, sandbox_id: str, snapshot: str, calls: CallsEndpoint) -> None:
        self.woken[sandbox_id] = time.time()
        if (waker := self.wakes.pop(sandbox_id, None)) is not None:
            waker.set()
        self._ask(calls, "complete", b'{"result": 1}')

    async def inspect(self, sandbox_id: str) -> SandboxInfo:
        spec = SandboxSpec(image="image")
        return SandboxInfo(id=sandbox_id, name="", spec=spec, state=SandboxState.RUNNING, created=0.0)

    async def of_runs(self) -> list[Sandbox]:
        return []  # what one of these costs is measured when there are some, and this is asked at the start

    async def events(self) -> AsyncIterator[NodeEvent]:
        yield NodeEvent(time=time.time(), kind="node.connected")
        await asyncio.Event().wait()

    async def output(self, sandbox_id: str, tail_bytes: int) -> bytes:
        return b""

    async def printed(self, sandbox_id: str, **how: Any) -> AsyncGenerator[OutputPiece]:
        for piece in list[OutputPiece]():
            yield piece

    async def remove(self, run_id: str) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} is not asked of machines that sleep")


def resident_bytes() -> int:
    """Of this process, after everything that can be given back was."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def measure(count: int) -> dict[str, float]:
    """Bytes per sleeping run; seconds from a signal, and from a deadline, to the restore."""
    with tempfile.TemporaryDirectory() as folder:
        log = await open_log(Path(folder) / "perdure.db")
        gateway = Gateway(log, Providers({"none": RemoteProvider("none", "http://127.0.0.1:1/v1", "", "none")}, "none"))
        machines = Sleepers()
        settings = Settings(idle_grace_s=0.01, shelve_after_s=0.1)
        engine = machines.engine = Engine(
            log, machines, gateway, calls_url="unix:/x", secret=b"secret", settings=settings
        )  # type: ignore[arg-type]  # what a bench needs of a machine
        await engine.open()
        try:
            await _start(engine, 50, {})  # what is there once is there
            before = resident_bytes()
            begun = time.perf_counter()
            sleeping = await _start(engine, count, {})
            print(f"  {count} runs asleep after {time.perf_counter() - begun:.0f} s", file=sys.stderr)
            per_run = (resident_bytes() - before) / count
            signalled = [await _woken_by_signal(engine, machines, run_id) for run_id in sleeping[:WAKES]]
            timed = await _timed(engine, machines)
        finally:
            await engine.close()
            await gateway.close()
            await log.close()
    return {
        "bytes per run": per_run,
        **{f"signal p{p}": _percentile(signalled, p) for p in (50, 99)},
        **{f"deadline p{p}": _percentile(timed, p) for p in (50, 99)},
    }


async def _start(engine: Engine, count: int, env: dict[str, str], spread_s: float = 0.0) -> list[str]:
    """Start runs, and wait until all are on the shelf."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> str:
        async with room:
            until = {"UNTIL": str(float(env["UNTIL"]) + spread_s * number / count)} if env else {}
            request = StartRequest(image="image", source="def f(ctx): ...", file="a.py", function="f", env=until)
            run_id = (await engine.start(request))[0].id
            while run_id not in engine._shelf:  # noqa: ASYNC110  # nobody is told of that
                await asyncio.sleep(0.05)
            return run_id

    return list(await asyncio.gather(*(one(number) for number in range(count))))


async def _woken_by_signal(engine: Engine, machines: Sleepers, run_id: str) -> float:
    woken = machines.wakes[run_id] = asyncio.Event()
    begun = time.time()
    await engine.signal(run_id, "go", None)
    await woken.wait()
    return machines.woken[run_id] - begun


async def _timed(engine: Engine, machines: Sleepers) -> list[float]:
    first = time.time() + AFTER_S
    run_ids = await _start(engine, TIMED, {"UNTIL": str(first)}, SPREAD_S)
    while len(machines.woken.keys() & set(run_ids)) < TIMED:  # noqa: ASYNC110  # it must not cost time
        await asyncio.sleep(0.2)
    return [machines.woken[run_id] - (first + SPREAD_S * nth / TIMED) for nth, run_id in enumerate(run_ids)]


def _percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1]


def add(report: Report, count: int = COUNT) -> None:
    """All figures, with how many runs slept in their names."""
    found = asyncio.run(measure(count))
    report.add(f"{count} sleeping runs: memory of the server, each", found["bytes per run"] / 1000, "kB")
    for what, named in (("signal", "from a signal to the restore"), ("deadline", "from a deadline to the restore")):
        for p in (50, 99):
            report.add(f"{count} sleeping runs: {named}, p{p}", found[f"{what} p{p}"] * 1000, "ms")


if __name__ == "__main__":
    print(HEAD)
    add(Report(), int(sys.argv[1]) if len(sys.argv) > 1 else COUNT)
