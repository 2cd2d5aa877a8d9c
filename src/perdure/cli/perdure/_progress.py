"""How far a file of lines is, on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator

EVERY_S = 0.2


def counted(lines: Iterable[bytes], what: str) -> Iterator[bytes]:
    """The same lines; a terminal is told of them on stderr."""
    from perdure.cli.perdure._words import size

    shown = sys.stderr.isatty()
    number = bytes_ = 0
    told = time.monotonic()
    for line in lines:
        yield line
        number, bytes_ = number + 1, bytes_ + len(line)
        if shown and time.monotonic() - told > EVERY_S:
            told = time.monotonic()
            sys.stderr.write(f"\r\x1b[K{what} {number} lines, {size(bytes_)}")
            sys.stderr.flush()
    if shown:
        sys.stderr.write(f"\r\x1b[K{what} {number} lines, {size(bytes_)}\n")
