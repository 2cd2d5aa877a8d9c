"""Writes the table of what durable runs must reach, from what was measured: between its marks in docs/design/0010.

    python tests/performance/reach.py build/bench.json docs/design/0010-figures.md

A row whose figure was not measured says so. Nothing of it is typed in.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from report import Figure, read

BEGIN, END = "<!-- reach: written by tests/performance/reach.py -->", "<!-- end of reach -->"
PARTS = (
    (
        "log",
        (
            "SQLite: a synced insert",
            "context log on SQLite: appends of one run",
            "context log on SQLite: of 64 runs at once",
            "context log on SQLite: its bytes",
            "PostgreSQL: a synced insert",
            "context log on PostgreSQL: appends of one run",
            "context log on PostgreSQL: of 64 runs at once",
            "context log on PostgreSQL: its bytes",
            "context log on PostgreSQL: its bytes, first of all",
        ),
    ),
    (
        "recovery",
        (
            "snapshot road: a recorded call, live",
            "snapshot road: recovery of 10 recorded calls",
            "snapshot road: recovery of 100 recorded calls",
            "snapshot road: recovery of 1000 recorded calls",
            "snapshot road: recovery of 10000 recorded calls",
            "snapshot road: recovery, of it: until it is noticed",
            "snapshot road: recovery, of it: the node's resume",
            "snapshot road: recovery of 10, and 100 since the snapshot",
            "from a signal to the next call: warm",
            "from a signal to the next call: asleep",
            "from a signal to the next call: asleep, of it: the node's resume",
        ),
    ),
    (
        "replay",
        (
            "replay road: a recorded step, live",
            "replay road: recovery of 1 recorded steps",
            "replay road: recovery of 10 recorded steps",
            "replay road: recovery of 100 recorded steps",
            "replay road: recovery of 1000 recorded steps",
            "replay road: recovery of 10000 recorded steps",
            "replay road on PostgreSQL: a recorded step, live",
            "replay road on PostgreSQL: recovery of 10 recorded steps",
            "replay road on PostgreSQL: recovery of 1000 recorded steps",
            "replay road on PostgreSQL: recovery of 10000 recorded steps",
        ),
    ),
    (
        "chain",
        (
            "chain of suspends of one run: cycles without an error",
            "chain of suspends of one run: a cycle, first half",
            "chain of suspends of one run: a cycle, second half",
            "chain of suspends of one run: recoveries meanwhile",
        ),
    ),
    (
        "gateway",
        (
            "gateway: added to the first byte, p50",
            "gateway: added to the first byte, p50, beside LiteLLM",
            "gateway: added to the first byte, p99, beside LiteLLM",
            "provider asked directly: calls a second, 32 at once",
            "LiteLLM, a worker for each processor: calls a second, 32 at once",
            "gateway: calls a second, 32 at once",
            "gateway: 500 streams at once, that ended whole",
            "gateway: 500 streams at once, first byte",
            "LiteLLM: 500 streams at once, that ended whole",
            "LiteLLM: 500 streams at once, first byte",
            "gateway: memory of the server after 10000 turns",
            "gateway: memory of the server, each turn behind them",
        ),
    ),
    (
        "sleep",
        (
            "10000 sleeping runs: memory of the server, each",
            "10000 sleeping runs: from a signal to the restore, p50",
            "10000 sleeping runs: from a signal to the restore, p99",
            "10000 sleeping runs: from a deadline to the restore, p50",
            "10000 sleeping runs: from a deadline to the restore, p99",
        ),
    ),
    (
        "crash",
        (
            "deaths of a server: deaths",
            "deaths of a server: what was wrong afterwards",
        ),
    ),
)


def table(figures: Sequence[Figure]) -> str:
    found = {figure.name: figure for figure in figures}
    lines = ["| part | figure | value | beside | ratio | goal | |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for part, names in PARTS:
        for nth, name in enumerate(names):
            cells = _cells(found[name]) if name in found else ["", "", "", "", "not measured"]
            lines.append("| " + " | ".join(["" if nth else f"`{part}`", name, *cells]) + " |")
    return "\n".join(line.replace("|  |", "| |").replace("|  |", "| |") for line in lines)


def _cells(one: Figure) -> list[str]:
    value = f"{_number(one.value)} {one.unit}".strip()
    baseline = "" if one.baseline is None else f"{_number(one.baseline)} {one.unit}".strip()
    ratio = "" if one.ratio is None else f"{one.ratio:.2f}"
    return [value, baseline, ratio, one.goal or "", {True: "met", False: "MISSED", None: ""}[one.met]]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def main(bench: Path, document: Path) -> None:
    text = document.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{document} has no place for the table: {BEGIN} … {END}")
    document.write_text(f"{before}{BEGIN}\n{table(read(bench))}\n{END}{after}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
