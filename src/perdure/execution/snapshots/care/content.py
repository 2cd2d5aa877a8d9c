"""The digest of a space's content, whatever its layers look like.

SHA-256 over the blocks that are not zeros, in order, each after its number (u32, little-endian).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from perdure.execution.snapshots.spaces import Space
from perdure.formats.blockmap import BLOCK
from perdure.host.progress import Progress, silent
from perdure.linux import sparse

if TYPE_CHECKING:
    from hashlib import _Hash

_STEP = 256  # blocks read at a time
_ZERO_BLOCK = bytes(BLOCK)


def digest(
    space: Space, progress: Progress = silent, what: str = "Reading", *, without: Collection[int] = frozenset()
) -> str:
    """64 hex digits, of all blocks but those of these numbers.

    Reads every frame that holds a block of the space; raises SnapshotInvalid that names one.
    """
    found = hashlib.sha256()
    for first, end, data in space.pieces(0, space.blocks):
        if data is not None:
            _take(found, first, data, without)
        progress(what, end, space.blocks)
    return found.hexdigest()


def digest_of_file(path: Path, *, without: Collection[int] = frozenset()) -> str:
    """The same of a raw, sparse file: a guest's memory as Firecracker writes it, or a disk."""
    found = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        for place, length in sparse.extents(file.fileno()):
            for start in range(place, place + length, _STEP * BLOCK):
                data = os.pread(file.fileno(), min(_STEP * BLOCK, place + length - start), start)
                _take(found, start // BLOCK, data, without)
    return found.hexdigest()


def _take(found: _Hash, first: int, data: bytes, without: Collection[int]) -> None:
    for place in range(0, len(data), BLOCK):
        block, number = data[place : place + BLOCK], first + place // BLOCK
        if block != _ZERO_BLOCK and number not in without:
            found.update(number.to_bytes(4, "little"))
            found.update(block)
