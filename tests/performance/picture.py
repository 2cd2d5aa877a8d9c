"""Draws the figures: what took how long beside unmodified Firecracker, and what is stored. SVG, by hand: no library."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from html import escape
from json import loads
from pathlib import Path
from typing import Any

from report import Figure, read

WIDTH, LABEL, BAR, ROW, GAP, TOP = 900, 380, 340, 15, 11, 88
OURS, THEIRS, GOAL, TEXT, PALE = "#2563eb", "#9ca3af", "#dc2626", "#111827", "#6b7280"
HALO = 'paint-order="stroke" stroke="#ffffff" stroke-width="3"'


def draw(figures: Sequence[Figure], environment: dict[str, Any]) -> str:
    """Every figure in seconds that has a baseline, all that is stored or held, all rates; each group has a scale."""
    timed = [one for one in figures if one.unit == "s" and one.baseline is not None and "host" not in one.name]
    # of what is beside more than one baseline, and of cold things that dwarf the rest, the table tells; of the roads
    # another picture (``curves``)
    timed = [one for one in timed if "cold" not in one.name and " road" not in one.name]
    sized = [one for one in figures if one.unit == "MB" and one.goal and one.goal.startswith("value")]
    rates = [one for one in figures if one.unit == "MB/s" and one.baseline is not None]
    parts: list[str] = []
    y = TOP
    for title, group in (("seconds", timed), ("megabytes", sized), ("megabytes a second", rates)):
        if group:
            parts.append(text(16, y, title, size=13, bold=True))
            y += 12
            drawn, y = _group(group, y)
            parts += drawn
            y += 22
    height = y
    guest = environment["guest"]
    where = (
        f"{guest['memory_mib']} MiB guest, an agent in Python after {guest['turns']} turns; {environment['machine']}, "
        f"{environment['cpus']} CPUs ({environment['cpu']}); Firecracker {environment['firecracker']}"
    )
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="system-ui, sans-serif" role="img">',
        f"<title>{escape(where)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        text(16, 24, "Perdure beside unmodified Firecracker, one run", size=16, bold=True),
        text(16, 42, where, size=11, fill=PALE),
        *_legend(),
    ]
    return "\n".join([*head, *parts, "</svg>"]) + "\n"


def _group(figures: Sequence[Figure], y: int) -> tuple[list[str], int]:
    longest = max(max(one.value, one.baseline or 0.0, _bound(one) or 0.0) for one in figures)
    parts: list[str] = []
    for one in figures:
        rows = 1 if one.baseline is None else 2
        parts.append(text(LABEL - 10, y + ROW * rows / 2 + 4, one.name, anchor="end"))
        bound = _bound(one)
        if bound is not None:
            x = LABEL + BAR * bound / longest
            parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y - 3}" y2="{y + ROW * rows + 1}" stroke="{GOAL}" '
                f'stroke-width="1.5" stroke-dasharray="3 2"/>'
            )
        parts += _bar(y, one.value, longest, OURS, _said(one))
        if one.baseline is not None:
            parts += _bar(y + ROW, one.baseline, longest, THEIRS, _number(one.baseline))
        y += ROW * rows + GAP
    return parts, y


def _said(one: Figure) -> str:
    ratio = "" if one.ratio is None else f" ({one.ratio:.2f} x)"
    verdict = {True: "", False: ", goal missed", None: ""}[one.met]
    return f"{_number(one.value)}{ratio}{verdict}"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _bound(one: Figure) -> float | None:
    """The goal in the figure's own unit."""
    if one.goal is None:
        return None
    what, _, bound = one.goal.split()
    return float(bound) * (one.baseline or 0.0) if what == "ratio" else float(bound)


def _bar(y: float, value: float, longest: float, fill: str, said: str) -> Iterator[str]:
    width = max(BAR * value / longest, 1)
    yield f'<rect x="{LABEL}" y="{y}" width="{width:.1f}" height="{ROW - 2}" rx="2" fill="{fill}"/>'
    yield text(LABEL + width + 6, y + ROW - 4, said, fill=TEXT if fill == OURS else PALE, more=HALO)


def _legend() -> Iterator[str]:
    x = 16.0
    for fill, name in ((OURS, "Perdure"), (THEIRS, "what it is measured against")):
        yield f'<rect x="{x}" y="51" width="11" height="11" rx="2" fill="{fill}"/>'
        yield text(x + 16, 61, name)
        x += 30 + 6.5 * len(name)
    yield f'<line x1="{x + 5}" x2="{x + 5}" y1="50" y2="63" stroke="{GOAL}" stroke-width="1.5" stroke-dasharray="3 2"/>'
    yield text(x + 12, 61, "goal (a bound)")


def text(
    x: float,
    y: float,
    said: str,
    *,
    size: int = 12,
    fill: str = TEXT,
    anchor: str = "start",
    bold: bool = False,
    more: str = "",
) -> str:
    weight = 600 if bold else 400
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" fill="{fill}" '
        f'text-anchor="{anchor}" {more}>{escape(said)}</text>'
    )


if __name__ == "__main__":  # python picture.py BENCH.JSON ENVIRONMENT.JSON PICTURE.SVG
    figures, environment, target = map(Path, sys.argv[1:4])
    target.write_text(draw(read(figures), loads(environment.read_text())))
