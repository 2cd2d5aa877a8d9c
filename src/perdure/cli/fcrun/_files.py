"""Files and stdin as streams of bytes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import IO

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
    with ExitStack() as held:
        try:
            file = held.enter_context(open(path, "rb"))
        except OSError as error:  # not around the ``yield``: what the caller raises there is no fault of the file
            raise InvalidValue(f"{path}: {error.strerror}") from error
        yield iter(lambda: file.read(CHUNK_BYTES), b"")


def save(pieces: Iterator[bytes], path: str) -> None:
    """Write them to a file, which is there when all of it is; to stdout for "-". Raises InvalidValue."""
    if path == "-":
        if sys.stdout.isatty():
            raise InvalidValue("stdout is a terminal", hint="Name a file: -o FILE")
        for piece in pieces:
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
        return
    if os.path.exists(path) and not os.path.isfile(path):
        with _opened(path) as file:
            file.writelines(pieces)
        return
    part = f"{path}.part-{os.getpid()}"
    try:
        first = next(pieces, b"")  # before a file is made: what the node refuses leaves none
        with _opened(part) as file:
            file.write(first)
            file.writelines(pieces)
        os.replace(part, path)
    except OSError as error:
        raise InvalidValue(f"{path}: {error.strerror}") from error
    finally:
        with suppress(OSError):
            os.unlink(part)


def _opened(path: str) -> IO[bytes]:
    try:
        return open(path, "wb")
    except OSError as error:
        raise InvalidValue(f"{path}: {error.strerror}") from error
