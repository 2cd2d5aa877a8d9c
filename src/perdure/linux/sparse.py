"""Sparse files: walk and copy only what holds data (lseek(2), SEEK_DATA and SEEK_HOLE)."""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

STEP_BYTES = 8 << 20
_BLOCK, _CHUNK = 4 << 10, 64 << 10
_ZEROS = bytes(_CHUNK)
_ZEROS_OF = {_BLOCK: bytes(_BLOCK), _CHUNK: _ZEROS}


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


def copy(source: int, target: int, *, drop_zeros: bool = False) -> Iterator[int]:
    """Copy the data extents into an empty file, which gets the same size; yields the bytes copied after each step.

    A step is at most ``STEP_BYTES``, so that the caller can do other things between. ``drop_zeros``: blocks of zeros
    become holes too. Both descriptors' offsets change. Raises OSError.
    """
    os.ftruncate(target, os.fstat(source).st_size)
    for at, length in list(extents(source)):
        end = at + length
        while at < end:
            step = min(end - at, STEP_BYTES)
            yield _copy_without_zeros(source, target, at, step) if drop_zeros else _copy(source, target, at, step)
            at += step


def _copy(source: int, target: int, at: int, length: int) -> int:
    os.lseek(target, at, os.SEEK_SET)
    end = at + length
    while at < end:
        moved = os.sendfile(target, source, at, end - at)  # the kernel moves the bytes
        if moved == 0:
            raise _shorter()
        at += moved
    return length


def _copy_without_zeros(source: int, target: int, at: int, length: int) -> int:
    data = os.pread(source, length, at)
    if len(data) < length:
        raise _shorter()
    view = memoryview(data)
    copied = 0
    for begin, end in _runs(data):
        while begin < end:
            written = os.pwrite(target, view[begin:end], at + begin)
            begin += written
            copied += written
    return copied


def _runs(data: bytes) -> Iterator[tuple[int, int]]:
    """(begin, end) of the runs of blocks that are not all zeros. Large steps first: each costs the interpreter."""
    begin = -1
    for chunk in range(0, len(data), _CHUNK):
        block = _CHUNK if _is_zero(data, chunk, _CHUNK) else _BLOCK
        for at in range(chunk, min(chunk + _CHUNK, len(data)), block):
            if _is_zero(data, at, block):
                if begin >= 0:
                    yield begin, at
                    begin = -1
            elif begin < 0:
                begin = at
    if begin >= 0:
        yield begin, len(data)


def _is_zero(data: bytes, at: int, length: int) -> bool:
    left = len(data) - at
    return data.startswith(_ZEROS_OF[length] if length <= left else _ZEROS[:left], at)


def _shorter() -> OSError:
    return OSError(errno.EIO, "the file became shorter while it was copied")
