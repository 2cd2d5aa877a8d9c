"""Named figures, each beside what it is measured against and the bound that it has to keep."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

MEGABYTE = 1e6  # the goals count decimal megabytes


HEAD = f"\n{'':54} {'value':>10} {'':4} {'baseline':>9} {'ratio':>7}  goal"


@dataclass(frozen=True)
class Figure:
    name: str
    value: float
    unit: str
    baseline: float | None = None
    ratio: float | None = None
    goal: str | None = None
    met: bool | None = None


class Report:
    """The figures in the order in which they were measured."""

    def __init__(self) -> None:
        self.figures: list[Figure] = []

    def add(self, name: str, value: float, unit: str, *, over: str = "", goal: str = "") -> None:
        """One figure. ``over`` names the figure it is measured against; ``goal`` is "ratio <= N" or "value <= N"."""
        baseline = self.value(over) if over else None
        ratio = value / baseline if baseline else None
        met = None
        if goal:
            what, sign, bound = goal.split()
            measured = {"value": value, "ratio": ratio}[what]
            assert measured is not None and sign in ("<=", ">=")
            met = measured <= float(bound) if sign == "<=" else measured >= float(bound)
        self.figures.append(
            Figure(
                name,
                round(value, 4),
                unit,
                None if baseline is None else round(baseline, 4),
                None if ratio is None else round(ratio, 3),
                goal or None,
                met,
            )
        )
        print(_row(self.figures[-1]), flush=True)

    def value(self, name: str) -> float:
        return next(figure.value for figure in self.figures if figure.name == name)


def write(path: Path, figures: Sequence[Figure]) -> None:
    path.write_text(json.dumps([asdict(figure) for figure in figures], indent=1) + "\n")


def read(path: Path) -> list[Figure]:
    """What ``write`` wrote; [] when there is none."""
    return [Figure(**one) for one in json.loads(path.read_text())] if path.exists() else []


def _row(figure: Figure) -> str:
    ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
    baseline = "" if figure.baseline is None else f"{figure.baseline:.3f}"
    verdict = {True: "met", False: "NOT MET", None: ""}[figure.met]
    value = f"{figure.value:10.3f} {figure.unit:4}"
    return f"{figure.name:54} {value} {baseline:>9} {ratio:>7}  {figure.goal or '':15} {verdict}"
