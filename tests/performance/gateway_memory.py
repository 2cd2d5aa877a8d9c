"""The memory of a server through whose gateway 10,000 turns go: of 50 runs, every other one a stream, no two alike.

    python gateway_memory.py [TURNS]     prints each sample and the figures

Its resident set is looked at after each 500 turns. The first 2,000 are its warm-up: connections, SQLite's caches of
pages and what Python makes once. What each turn behind them costs is the slope of a line through the samples.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench_gateway import AT_ONCE, MODEL, OURS, Asker, process
from report import HEAD, MEGABYTE, Report

from perdure.host.paths import Home

TURNS, WARM_UP, SAMPLED = 10_000, 2000, 500
RUNS = 50
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def add(report: Report, turns: int = TURNS) -> None:
    with tempfile.TemporaryDirectory() as name, process("provide") as provider:
        home = Home(Path(name) / "home", Path(name) / "cache").make()
        with process("serve", str(home.root), provider["url"], str(RUNS)) as served:
            asker = (provider["url"], home.socket("perdured"), served["runs"])
            samples = asyncio.run(_sample(asker, served["pid"], turns))
    behind = {asked: size for asked, size in samples.items() if asked >= WARM_UP}
    for asked in (WARM_UP, turns):
        over = f"{OURS}: memory of the server after {WARM_UP} turns" if asked > WARM_UP else ""
        report.add(f"{OURS}: memory of the server after {asked} turns", samples[asked] / MEGABYTE, "MB", over=over)
    slope = statistics.linear_regression(list(behind), list(behind.values())).slope
    report.add(f"{OURS}: memory of the server, each turn behind them", slope, "B", goal="value <= 100")


async def _sample(to: tuple[str, Path, list[tuple[str, str]]], pid: int, turns: int) -> dict[int, int]:
    """Bytes, by how many turns were asked."""
    asker = Asker(*to)
    found = {0: _resident(pid)}
    try:
        for begun in range(0, turns, SAMPLED):
            numbers = iter(range(begun, begun + SAMPLED))
            await asyncio.gather(*(_ask(asker, numbers) for _ in range(AT_ONCE)))
            found[begun + SAMPLED] = _resident(pid)
            print(f"  {begun + SAMPLED} turns: {found[begun + SAMPLED] / MEGABYTE:.2f} MB", file=sys.stderr)
    finally:
        asker.close()
    return found


async def _ask(asker: Asker, numbers: Iterator[int]) -> None:
    for number in numbers:
        asked = {"model": MODEL, "messages": [{"role": "user", "content": f"Say {number}."}], "max_tokens": 1}
        await asker.ask(OURS, json.dumps(asked | ({"stream": True} if number % 2 else {})).encode())


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES


if __name__ == "__main__":
    print(HEAD)
    add(Report(), int(sys.argv[1]) if len(sys.argv) > 1 else TURNS)
