"""Python packages of this process, for guests that reach no index: their files, and those of all that they need."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement


def copy(names: Iterable[str], target: Path) -> None:
    """Into the folder ``target``, compiled files too. PackageNotFoundError for a name that is not installed."""
    for found in _needed(names):
        for file in found.files or []:
            path = Path(str(found.locate_file(file)))
            if ".." not in file.parts and path.is_file():  # no programs
                (target / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, target / file)  # with its time, by which compiled files are known to be fresh


def _needed(names: Iterable[str]) -> list[Distribution]:
    wanted, found = list(names), dict[str, Distribution]()
    for name in wanted:  # it grows
        if name in found:
            continue
        found[name] = distribution(name)
        for need in map(Requirement, found[name].requires or []):
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                wanted.append(need.name)
    return list(found.values())
