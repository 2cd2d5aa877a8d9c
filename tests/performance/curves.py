"""Draws how soon a run goes on after a loss, over the number of calls that its log has. SVG, by hand: no library."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Sequence
from html import escape
from json import loads
from pathlib import Path
from typing import Any

from picture import HALO, OURS, PALE, THEIRS, text
from report import Figure, read

WIDTH, HEIGHT = 900, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 170, 72, 44  # around the field
OTHER = "#059669"
FILLS = {"snapshot road": OURS, "replay road": OTHER, "DBOS": THEIRS}
NAME = re.compile(r"(snapshot road|replay road|DBOS): recovery of (\d+) recorded (?:calls|steps)")
FEWEST = 10  # calls; of fewer a table tells


def draw(figures: Sequence[Figure], environment: dict[str, Any]) -> str:
    """One line for each road that was measured, and one for DBOS; both axes are logarithmic."""
    lines = _lines(figures)
    values = [value for line in lines.values() for value in line.values()] or [0.1, 1.0]
    counts = [count for line in lines.values() for count in line] or [FEWEST, 10 * FEWEST]
    across, up = _decades(counts), _decades(values)
    where = (
        f"medians, from kill -9 of the microVM or process until the function is past its last recorded call; "
        f"{environment['machine']}, {environment['cpus']} CPUs ({environment['cpu']})"
    )
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="system-ui, sans-serif" role="img">',
        f"<title>{escape(where)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        text(16, 24, "Recovery, over the number of recorded calls", size=16, bold=True),
        text(16, 42, where, size=11, fill=PALE),
    ]
    parts = [*_grid(across, up)]
    for name, line in lines.items():
        parts += _curve(name, line, across, up)
    return "\n".join([*head, *parts, "</svg>"]) + "\n"


def _lines(figures: Sequence[Figure]) -> dict[str, dict[int, float]]:
    """Seconds by the number of calls, by road."""
    lines: dict[str, dict[int, float]] = {}
    for name in FILLS:
        for figure in figures:
            found = NAME.fullmatch(figure.name)
            if found and found[1] == name and int(found[2]) >= FEWEST:
                lines.setdefault(name, {})[int(found[2])] = figure.value
    return lines


def _decades(values: Sequence[float]) -> range:
    """The powers of ten that hold them all."""
    return range(math.floor(math.log10(min(values))), max(math.ceil(math.log10(max(values))), 1) + 1)


def _x(count: float, across: range) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (math.log10(count) - across[0]) / (across[-1] - across[0])


def _y(value: float, up: range) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (math.log10(value) - up[0]) / (up[-1] - up[0])


def _grid(across: range, up: range) -> Iterator[str]:
    for power in across:
        x = _x(10.0**power, across)
        yield _rule(x, x, TOP, HEIGHT - BOTTOM)
        yield text(x, HEIGHT - BOTTOM + 18, f"{10**power:,}", fill=PALE, anchor="middle")
    for power in up:
        y = _y(10.0**power, up)
        yield _rule(LEFT, WIDTH - RIGHT, y, y)
        yield text(LEFT - 8, y + 4, f"{10.0**power:g} s", fill=PALE, anchor="end")
    yield text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "recorded calls", anchor="middle")


def _rule(x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}" stroke="#e5e7eb"/>'


def _curve(name: str, line: dict[int, float], across: range, up: range) -> Iterator[str]:
    fill = FILLS[name]
    points = [(_x(count, across), _y(value, up)) for count, value in sorted(line.items())]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    yield f'<polyline points="{path}" fill="none" stroke="{fill}" stroke-width="2"/>'
    for (x, y), value in zip(points, (line[count] for count in sorted(line)), strict=True):
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{fill}"/>'
        yield text(x, y - 8, f"{value:.2g} s", size=11, fill=PALE, anchor="middle", more=HALO)
    x, y = points[-1]
    yield text(x + 12, y + 4, name, fill=fill if name != "DBOS" else PALE, bold=True, more=HALO)


if __name__ == "__main__":  # python curves.py BENCH.JSON ENVIRONMENT.JSON PICTURE.SVG
    figures, environment, target = map(Path, sys.argv[1:4])
    target.write_text(draw(read(figures), loads(environment.read_text())))
