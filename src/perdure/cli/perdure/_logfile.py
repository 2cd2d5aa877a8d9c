"""Reading an exported log."""

from __future__ import annotations

import sys
from collections.abc import Iterator


def lines(path: str) -> Iterator[bytes]:
    """Of a file, or of stdin (``-``). ``InvalidValue``: it cannot be read."""
    from perdure.errors import InvalidValue

    if path == "-":
        yield from sys.stdin.buffer
        return
    try:
        with open(path, "rb") as file:
            yield from file
    except OSError as error:
        raise InvalidValue(f"{path} cannot be read: {error.strerror}") from error
