"""Sparse files: walk and copy only what holds data (lseek(2), SEEK_DATA and SEEK_HOLE)."""

from __future__ import annotations

import errno
import mmap
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

STEP_BYTES = 1 << 20
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
    become holes too. The source may be open with O_DIRECT. Raises OSError.
    """
    os.ftruncate(target, os.fstat(source).st_size)
    with mmap.mmap(-1, STEP_BYTES) as buffer, memoryview(buffer) as view:  # at a page's start
        for at, length in list(extents(source)):
            end = at + length
            while at < end:
                with view[: (end - at + _BLOCK - 1) // _BLOCK * _BLOCK] as wanted:  # whole blocks, as O_DIRECT wants
                    got = min(os.preadv(source, [wanted], at), end - at)
                if got == 0:
                    raise OSError(errno.EIO, "the file became shorter while it was copied")
                runs = _runs(buffer[:got]) if drop_zeros else [(0, got)]
                yield sum(_write(target, view, begin, stop, at) for begin, stop in runs)
                at += got


def copy_range(source: int, target: int, first: int, end: int) -> None:
    """Copy these bytes, holes as zeros. Raises OSError."""
    at = first
    while at < end:
        data = os.pread(source, min(STEP_BYTES, end - at), at)
        if not data:
            raise OSError(errno.EIO, "the file became shorter while it was copied")
        with memoryview(data) as view:
            at += _write(target, view, 0, len(data), at)


def read(file: int, length: int, at: int) -> bytes:
    """So many bytes, fewer only at the file's end. Raises OSError."""
    data = os.pread(file, length, at)
    while 0 < len(data) < length and (more := os.pread(file, length - len(data), at + len(data))):
        data += more
    return data


def open_direct(path: str) -> int:
    """Open for reading past the page cache: several times faster through virtiofs. As always where there is no such."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:  # this file system has no O_DIRECT
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _write(target: int, view: memoryview, begin: int, end: int, base: int) -> int:
    at = begin
    while at < end:
        with view[at:end] as rest:
            at += os.pwrite(target, rest, base + at)
    return end - begin


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
