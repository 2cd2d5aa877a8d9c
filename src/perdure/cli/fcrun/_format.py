"""What lists print: a table for people, JSON for programs, or a template such as ``{{.Name}}``, as Docker has it."""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from perdure.errors import InvalidValue

Row = Mapping[str, str]
_FIELD = re.compile(r"\{\{\s*(json\s+)?\.([\w.]*)\s*\}\}")


def add_options(parser: argparse.ArgumentParser, *, quiet: str) -> None:
    """``--format``, ``-q`` and ``--no-trunc``."""
    parser.add_argument(
        "--format", default="table", metavar="FORMAT", help="'table', 'json', or a template such as '{{.Name}}'"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help=quiet)
    parser.add_argument("--no-trunc", action="store_true", help="do not shorten")


def show(rows: Sequence[Row], values: Sequence[Any], columns: Mapping[str, str], template: str) -> None:
    """Print a list. columns: field -> heading of the table; values: what ``json`` prints, one line each."""
    if template == "json":
        for value in values:
            print(json.dumps(value))
    elif template == "table":
        _table([[row[field] for field in columns] for row in rows], list(columns.values()))
    elif template.startswith("table "):
        wanted = template[6:].replace("\\t", "\t")
        headings = {field: columns.get(field, field.upper()) for field in _fields(wanted)}
        lines = [fill(wanted, headings).split("\t"), *(fill(wanted, row).split("\t") for row in rows)]
        _table(lines[1:], lines[0])
    else:
        for row in rows:
            print(fill(template.replace("\\t", "\t").replace("\\n", "\n"), row))


def _fields(template: str) -> list[str]:
    return [match[1] for match in _FIELD.findall(template)]


def fill(template: str, value: Any) -> str:
    """The template with ``{{.a.b}}`` and ``{{json .a}}`` filled in. Raises InvalidValue for an unknown field."""

    def replace(match: re.Match[str]) -> str:
        found = value
        for part in filter(None, match[2].split(".")):
            if not isinstance(found, Mapping) or part not in found:
                known = ", ".join(sorted(map(str, found))) if isinstance(found, Mapping) else "none"
                raise InvalidValue(f"--format: there is no field {match[2]!r}", hint=f"Fields here: {known}")
            found = found[part]
        return json.dumps(found) if match[1] or not isinstance(found, str) else found

    return _FIELD.sub(replace, template)


def _table(lines: Sequence[Sequence[str]], headings: Sequence[str]) -> None:
    widths = [max(map(len, column)) for column in zip(headings, *lines, strict=True)]
    for line in (headings, *lines):
        print("   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def size(count: float) -> str:
    """Bytes as Docker writes them: 14.2MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f}{unit}" if unit == "B" or count >= 100 else f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g}TB"


def binary_size(count: float) -> str:
    """Bytes of memory as Docker writes them: 14.2MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f}{unit}" if unit == "B" else f"{count:.4g}{unit}"
        count /= 1024
    return f"{count:.4g}TiB"


def ago(moment: float | None, clock: Callable[[], float] = time.time) -> str:
    """A duration up to now as Docker writes it: "5 minutes"."""
    seconds = max(0, int(clock() - (moment or 0)))
    if seconds < 1:
        return "Less than a second"
    for unit, length in (("year", 31_536_000), ("month", 2_592_000), ("week", 604_800), ("day", 86_400)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}s"
    for unit, length in (("hour", 3600), ("minute", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}s"
        if seconds >= length:
            return f"About {'an' if unit == 'hour' else 'a'} {unit}"
    return f"{seconds} second{'s' * (seconds != 1)}"


def digest(name: str, *, short: bool = True) -> str:
    """A digest as lists show it: its first twelve digits, or all of it. Other names stay as they are."""
    return name.removeprefix("sha256:")[:12] if short and name.startswith("sha256:") else name


def count(number: int, what: str) -> str:
    """So many of a thing: "1 layer", "2 layers"."""
    return f"{number} {what}{'s' * (number != 1)}"
