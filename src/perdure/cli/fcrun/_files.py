"""Files and stdin as streams of bytes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from perdure.errors import InvalidValue

CHUNK_BYTES = 1 << 18


@contextmanager
def chunks(path: str) -> Iterator[Iterator[bytes]]:
    """The bytes of a file; of stdin for "-". Raises InvalidValue when it does not open."""
    if path == "-":
        if sys.stdin.isatty():
            raise InvalidValue("stdin is a terminal", hint="Pipe an archive in, or name a file.")
        yield iter(lambda: sys.stdin.buffer.read(CHUNK_BYTES), b"")
        return
    try:
        file = open(path, "rb")  # noqa: PTH123, SIM115 - pathlib costs start time; closed below
    except OSError as error:
        raise InvalidValue(f"{path}: {error.strerror}") from error
    with file:
        yield iter(lambda: file.read(CHUNK_BYTES), b"")
