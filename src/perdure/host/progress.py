"""Progress of long steps: what callers report it to, and how a terminal shows it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done, and the total (0: unknown). Equal numbers mean it is finished."""

BAR_CELLS = 24
REDRAW_S = 0.1


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


class TerminalProgress:
    """Draws one line per step: a bar that is redrawn on a terminal, one plain line when it began elsewhere.

    Use it as a context manager, so that the last line is ended also when the step fails.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty()
        self._what = ""
        self._drawn = 0.0

    def __enter__(self) -> TerminalProgress:
        return self

    def __exit__(self, *exc: object) -> None:
        self._end_line()

    def __call__(self, what: str, done: int, total: int) -> None:
        finished = total > 0 and done >= total
        if what != self._what:
            self._end_line()
            self._what = what
            if not self._live:
                self._write(f"{what}\n")
        if not self._live:
            return
        now = time.monotonic()
        if finished or now - self._drawn >= REDRAW_S:
            self._drawn = now
            self._write(f"\r\x1b[K{what}{_bar(done, total)}")

    def _end_line(self) -> None:
        if self._what and self._live:
            self._write("\n")
        self._what = ""
        self._drawn = 0.0

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def _bar(done: int, total: int) -> str:
    if total <= 0:
        return f"  {done:,}" if done else " …"
    filled = BAR_CELLS * min(done, total) // total
    return f"  [{'#' * filled}{'.' * (BAR_CELLS - filled)}] {100 * min(done, total) // total:3d} %"
