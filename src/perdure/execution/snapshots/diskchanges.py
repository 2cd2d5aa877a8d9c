"""Which parts of a disk differ from what it held at a snapshot, found without that snapshot's content.

Nobody tells what a guest writes to its disk. So what it held is kept as hashes, and a file that was not written to
since is not even read. Blocking: run it in a thread.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from perdure.errors import SnapshotInvalid
from perdure.formats import diskindex
from perdure.formats.blockmap import BLOCK
from perdure.formats.diskindex import CHUNK, HASH_BYTES, DiskIndex, Stamp
from perdure.host.machine import boot_id
from perdure.linux import sparse

_STEP = 64  # chunks that a thread reads at a time: 4 MiB
# A file's time has the resolution of a tick, or (some file systems) of a second. Set to before now by more than that,
# it differs from the time of every later write.
_BEFORE_NS = 3_000_000_000

Ranges = list[tuple[int, int]]  # (first block, end), in order


@dataclass(frozen=True)
class Changes:
    """``chunks``: what the disk holds now, as in an index; ``ranges``: where it may differ from the snapshot, None
    where no index tells. True of the file for as long as it has this stamp."""

    stamp: Stamp
    chunks: dict[int, bytes]
    ranges: Ranges | None


def stamp_of(path: Path) -> Stamp:
    """Raises OSError."""
    facts = path.stat()
    return Stamp(bytes.fromhex(boot_id().replace("-", "")), facts.st_size, facts.st_ino, facts.st_mtime_ns)


def stamped(path: Path) -> Stamp:
    """Mark the file, so that whoever writes to it from now on changes its stamp. Raises OSError."""
    now = time.time_ns()
    os.utime(path, ns=(now, now - _BEFORE_NS))
    return stamp_of(path)


def changes(path: Path, index: DiskIndex | None, *, copy_of: Stamp | None = None) -> Changes:
    """``index``: of the snapshot that this disk went on from; None: there is none. ``copy_of``: the file is a copy of
    one that had this stamp then. Raises OSError."""
    stamp = copy_of or stamp_of(path)
    if index is not None and stamp == index.stamp:
        return Changes(stamp, index.chunks, [])
    if copy_of is None:
        stamp = stamped(path)  # before it is read: who writes meanwhile is seen by it
    now = chunks_of(path)
    if index is None:
        return Changes(stamp, now, None)
    before = index.chunks
    differ = sorted(number for number in before.keys() | now.keys() if before.get(number) != now.get(number))
    return Changes(stamp, now, _blocks(differ, stamp.size // BLOCK))


def chunks_of(path: Path) -> dict[int, bytes]:
    """The hash of each chunk that holds data, by number, in order. Reads on all cores."""
    with path.open("rb", buffering=0) as file, ThreadPoolExecutor(os.cpu_count()) as pool:
        descriptor = file.fileno()
        steps = list(_steps(sparse.extents(descriptor)))
        hashed = pool.map(lambda step: _hashes(descriptor, *step), steps)
        return {number: value for part in hashed for number, value in part}


def _steps(extents: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """(first chunk, end), no chunk twice."""
    seen = 0
    for at, length in extents:
        first, end = max(seen, at // CHUNK), -(-(at + length) // CHUNK)
        for begin in range(first, end, _STEP):
            yield begin, min(end, begin + _STEP)
        seen = max(seen, end)


def _hashes(file: int, first: int, end: int) -> list[tuple[int, bytes]]:
    view = memoryview(sparse.read(file, (end - first) * CHUNK, first * CHUNK))
    return [
        (first + place // CHUNK, hashlib.sha256(view[place : place + CHUNK]).digest()[:HASH_BYTES])
        for place in range(0, len(view), CHUNK)
    ]


def _blocks(chunks: Sequence[int], blocks: int) -> Ranges:
    out: Ranges = []
    each = CHUNK // BLOCK
    for number in chunks:
        first, end = number * each, min(blocks, (number + 1) * each)
        if out and out[-1][1] == first:
            out[-1] = (out[-1][0], end)
        elif first < end:
            out.append((first, end))
    return out


def load(path: Path, snapshot: str | None) -> DiskIndex | None:
    """The index in a file, if it is of this snapshot. One that does not read, or is none, costs time and nothing
    else."""
    try:
        index = diskindex.decode(path.read_bytes())
    except (OSError, SnapshotInvalid):
        return None
    return index if index.snapshot == snapshot else None


def save(path: Path, index: DiskIndex) -> None:
    """Replace the file; not synced, as its stamp does not outlive a boot of the machine. Where there is no room, there
    is no index."""
    fresh = path.with_name(path.name + ".new")
    try:
        fresh.write_bytes(diskindex.encode(index))
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
