"""What lists print: a table for people, JSON for programs, or a template such as ``{{.Name}}``, as Docker has it."""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


class Open(dict[str, Any]):
    """A mapping whose keys people choose, such as labels; what it lacks a template prints as ``<no value>``."""


def add_options(parser: argparse.ArgumentParser, *, quiet: str) -> None:
    """``--format``, ``-q`` and ``--no-trunc``."""
    parser.add_argument(
        "--format", default="table", metavar="FORMAT", help="'table', 'json', or a template such as '{{.Name}}'"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help=quiet)
    parser.add_argument("--no-trunc", action="store_true", help="do not shorten")


def add_filter(parser: argparse.ArgumentParser, help: str) -> None:
    """``--filter``, again and again."""
    parser.add_argument("-f", "--filter", action="append", default=[], metavar="KEY=VALUE", help=help)


def show(rows: Sequence[Row], values: Sequence[Any], columns: Mapping[str, str], template: str) -> None:
    """Print a list. columns: field -> heading of the table; values: what ``json`` prints, one line each.

    A row's functions (``.Label "name"``) are for templates alone.
    """
    if template == "json":
        for value in values:
            print(json.dumps(value))
    elif template in ("", "table"):
        _table([[str(row[field]) for field in columns] for row in rows], list(columns.values()))
    else:
        from perdure.cli.fcrun._template import Template
        from perdure.cli.fcrun._template_values import HEADING_FUNCTIONS

        if template.startswith("table "):
            wanted = unescaped(template[6:])
            heading = Template(wanted, HEADING_FUNCTIONS)
            headings = {field: _heading(field, columns) for field in heading.fields}
            parsed = Template(wanted)
            lines = [parsed.fill(row).split("\t") for row in rows]
            _table(lines, heading.fill(headings).split("\t"))
        else:
            parsed = Template(unescaped(template))
            for row in rows:
                print(parsed.fill(row))


def _heading(field: str, columns: Mapping[str, str]) -> Any:
    if field == "Label":
        return lambda name: name.rpartition(".")[2].upper()
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", field).upper()  # CreatedAt: CREATED AT
    return columns.get(field, words)


def unescaped(template: str) -> str:
    """As a shell leaves it: in docker's templates, backslashes make tabs and lines outside of strings too."""
    return template.replace("\\t", "\t").replace("\\n", "\n")


def fill(template: str, value: Any) -> str:
    """The template (``_template``) filled in for one value. Raises InvalidValue for an unknown field."""
    from perdure.cli.fcrun._template import Template

    return Template(unescaped(template)).fill(value)


def _table(lines: Sequence[Sequence[str]], headings: Sequence[str]) -> None:
    every = [headings, *lines]
    widths = [max(len(line[at]) for line in every if at < len(line)) for at in range(max(map(len, every)))]
    for line in every:
        print("   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip())


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
