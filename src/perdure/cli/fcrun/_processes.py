"""Processes as ps(1) shows them, in the columns that its options name."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perdure.model import SandboxProcess

Column = tuple[str, Callable[["SandboxProcess"], str]]  # heading, value


def _clock(seconds: float) -> str:
    days, rest = divmod(int(seconds), 86_400)
    text = f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{days}-{text}" if days else text


def _elapsed(seconds: float) -> str:
    return _clock(seconds) if seconds >= 3600 else f"{int(seconds) // 60:02}:{int(seconds) % 60:02}"


def _short_clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def _began(one: SandboxProcess) -> str:
    recent = time.time() - one.started < 86_400
    return time.strftime("%H:%M" if recent else "%b%d", time.localtime(one.started))


def _share(one: SandboxProcess) -> float:
    """Of one processor, over its life."""
    return 100 * one.cpu_s / one.elapsed_s if one.elapsed_s else 0.0


def _state(one: SandboxProcess) -> str:
    marks = "<" if one.nice < 0 else "N" if one.nice > 0 else ""
    return one.state + marks + ("s" if one.session == one.pid else "") + ("l" if one.threads > 1 else "")


COLUMNS: dict[str, Column] = {
    "args": ("COMMAND", lambda one: one.command),
    "c": ("C", lambda one: str(int(_share(one)))),
    "cmd": ("CMD", lambda one: one.command),
    "comm": ("COMMAND", lambda one: one.name),
    "command": ("COMMAND", lambda one: one.command),
    "cputime": ("TIME", lambda one: _clock(one.cpu_s)),
    "etime": ("ELAPSED", lambda one: _elapsed(one.elapsed_s)),
    "etimes": ("ELAPSED", lambda one: str(int(one.elapsed_s))),
    "ni": ("NI", lambda one: str(one.nice)),
    "nlwp": ("NLWP", lambda one: str(one.threads)),
    "pcpu": ("%CPU", lambda one: f"{_share(one):.1f}"),
    "pgid": ("PGID", lambda one: str(one.group)),
    "pid": ("PID", lambda one: str(one.pid)),
    "pmem": ("%MEM", lambda one: f"{one.memory_percent:.1f}"),
    "ppid": ("PPID", lambda one: str(one.ppid)),
    "rss": ("RSS", lambda one: str(one.resident_bytes >> 10)),
    "s": ("S", lambda one: one.state),
    "sid": ("SID", lambda one: str(one.session)),
    "start": ("STARTED", lambda one: time.strftime("%H:%M:%S", time.localtime(one.started))),
    "stat": ("STAT", _state),
    "stime": ("STIME", _began),
    "time": ("TIME", lambda one: _clock(one.cpu_s)),
    "tty": ("TTY", lambda one: one.tty),
    "uid": ("UID", lambda one: str(one.uid)),
    "user": ("USER", lambda one: one.user),
    "vsz": ("VSZ", lambda one: str(one.virtual_bytes >> 10)),
}
_ALIASES = {
    "%cpu": "pcpu",
    "%mem": "pmem",
    "euid": "uid",
    "euser": "user",
    "pgrp": "pgid",
    "rsz": "rss",
    "rssize": "rss",
    "sess": "sid",
    "start_time": "stime",
    "state": "s",
    "thcount": "nlwp",
    "tname": "tty",
    "tt": "tty",
    "ucmd": "comm",
    "ucomm": "comm",
    "vsize": "vsz",
}
_FULL: Sequence[Column] = (
    ("UID", lambda one: one.user),
    *(COLUMNS[name] for name in ("pid", "ppid", "c", "stime", "tty", "time", "cmd")),
)
_BY_USER: Sequence[Column] = (
    *(COLUMNS[name] for name in ("user", "pid", "pcpu", "pmem", "vsz", "rss", "tty", "stat")),
    ("START", _began),
    ("TIME", lambda one: _short_clock(one.cpu_s)),
    COLUMNS["args"],
)
_NUMBERS = frozenset(["PID", "PPID", "C", "%CPU", "%MEM", "VSZ", "RSS", "NI", "NLWP", "PGID", "SID"])


def wanted(options: Sequence[str]) -> Sequence[Column]:
    """The columns that options of ps mean. Raises InvalidValue for those that are not understood."""
    from perdure.errors import InvalidValue

    chosen: list[Column] = []
    by_user = False
    words = iter(options)
    for word in words:
        letters = word.lstrip("-")
        if word in ("-o", "-eo", "o", "--format", "-Ao", "-efo") or word.startswith(("-o", "--format=")):
            text = word[2:] if word.startswith("-o") else word.partition("=")[2]
            text = text or next(words, "")
            chosen += _named(text)
        elif letters in ("ax", "aux", "axu", "u", "auxww", "auxw"):
            by_user = by_user or "u" in letters
        elif letters not in ("e", "f", "ef", "A", "ww", "efww"):
            raise InvalidValue(
                f"{word!r} is no option of ps that is understood here",
                hint="Use -ef, aux, or -o with columns such as pid,user,rss,args.",
            )
    return chosen or (_BY_USER if by_user else _FULL)


def _named(text: str) -> list[Column]:
    from perdure.errors import InvalidValue

    found = []
    last, equals, heading = text.partition("=")
    names = [name for name in last.replace(" ", ",").split(",") if name]
    for number, name in enumerate(names):
        key = _ALIASES.get(name.lower(), name.lower())
        if key not in COLUMNS:
            raise InvalidValue(f"ps has no column {name!r} here", hint=f"Columns: {', '.join(sorted(COLUMNS))}")
        is_last = number == len(names) - 1
        found.append((heading if equals and is_last else COLUMNS[key][0], COLUMNS[key][1]))
    if not found:
        raise InvalidValue("-o needs columns", hint="Such as: -o pid,user,rss,args")
    return found


def _printable(text: str) -> str:
    """As ps has it: no line feed ends a line, and nothing of a sandbox speaks to the terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def lines(processes: Sequence[SandboxProcess], columns: Sequence[Column]) -> list[str]:
    """A heading, and a line for each process."""
    headings = [heading for heading, _ in columns]
    rows = [[_printable(value(one)) for _, value in columns] for one in processes]
    widths = [max(map(len, cells)) for cells in zip(headings, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        placed = [
            cell.rjust(width) if heading in _NUMBERS else cell.ljust(width)
            for cell, width, heading in zip(cells, widths, headings, strict=True)
        ]
        return "   ".join(placed).rstrip()

    return [line(headings), *map(line, rows)]
