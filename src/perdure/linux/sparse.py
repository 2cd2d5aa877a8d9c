"""Sparse files: walk and copy only what holds data (lseek(2), SEEK_DATA and SEEK_HOLE)."""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

STEP_BYTES = 8 << 20


def extents(fd: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of every run of data in the file, in order. Holes read as zeros."""
    at = 0
    size = os.fstat(fd).st_size
    while at < size:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        end = os.lseek(fd, at, os.SEEK_HOLE)
        yield at, end - at
        at = end


def copy(source: int, target: int) -> Iterator[int]:
    """Copy the data extents into an empty file, which gets the same size; yields the bytes copied after each step.

    A step is at most ``STEP_BYTES``, so that the caller can do other things between. The kernel moves the bytes
    (sendfile(2)); both descriptors' offsets change. Raises OSError.
    """
    os.ftruncate(target, os.fstat(source).st_size)
    for at, length in list(extents(source)):
        os.lseek(target, at, os.SEEK_SET)
        end = at + length
        while at < end:
            moved = os.sendfile(target, source, at, min(end - at, STEP_BYTES))
            if moved == 0:
                raise OSError(errno.EIO, "the file became shorter while it was copied")
            at += moved
            yield moved


def data_bytes(fd: int) -> int:
    """How many bytes the data extents hold."""
    return sum(length for _, length in extents(fd))
