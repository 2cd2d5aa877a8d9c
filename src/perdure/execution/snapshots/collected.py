"""What the collector left in a capture's folder, opened and verified."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from perdure.errors import InvalidValue, SnapshotInvalid
from perdure.formats import capturefile
from perdure.formats.capturefile import CaptureFile


def opened(path: Path, blocks: int) -> CaptureFile:
    """The capture file of a memory of so many blocks, verified. Raises SnapshotInvalid, InvalidValue."""
    with path.open("rb") as file:  # the mapping stays, as long as something refers to it
        size = os.fstat(file.fileno()).st_size
        held = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) if size else b""
    try:
        captured = capturefile.decode(memoryview(held))
    except SnapshotInvalid as error:
        raise SnapshotInvalid(f"{path}: {error.message}", hint="The sandbox goes on. Suspend it again.") from None
    if captured.blocks != blocks:
        raise InvalidValue(f"{path} is of {captured.blocks} blocks of memory, not of {blocks}")
    return captured
