"""The disks of suspended sandboxes, kept as they are so that these go on at once: ``sandboxes/ID/disk``.

Each may be deleted at any time, as the snapshot has it too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from pathlib import Path

LOOK_EVERY_S = 5.0
FLOOR_BYTES = 4 << 30  # where less is free than this, or a tenth of the file system, none is kept
FLOOR_PART = 10
SECTOR_BYTES = 512
_NO_LIMIT = 1 << 63

_log = logging.getLogger(__name__)


def trim(sandboxes: Path, limit_bytes: int = _NO_LIMIT, *, floor_bytes: int = 0) -> int:
    """Delete those that were suspended longest ago, until the others take no more than the limit and as much as the
    floor is free; the bytes freed. Blocking."""
    found: list[tuple[int, int, Path]] = []
    for path in sandboxes.glob("*/disk"):
        with contextlib.suppress(OSError):  # its sandbox has just taken it
            facts = path.stat()
            found.append((facts.st_ctime_ns, facts.st_blocks * SECTOR_BYTES, path))  # it was renamed when it was kept
    total = sum(size for _, size, _ in found)
    freed = 0
    for _, size, path in sorted(found):
        if total - freed <= limit_bytes and shutil.disk_usage(sandboxes).free >= floor_bytes:
            break
        path.unlink(missing_ok=True)
        freed += size
    if freed:
        _log.info("%d MiB of kept disks deleted", freed >> 20)
    return freed


def floor_of(sandboxes: Path) -> int:
    """What stays free in any case."""
    return min(FLOOR_BYTES, shutil.disk_usage(sandboxes).total // FLOOR_PART)


async def watch(sandboxes: Path, limit_bytes: int) -> None:
    """For ever: the disks of running sandboxes grow, and are not to meet a full file system for those that are kept."""
    await asyncio.to_thread(trim, sandboxes, limit_bytes)
    while True:
        floor_bytes = floor_of(sandboxes)
        if shutil.disk_usage(sandboxes).free < floor_bytes:
            await asyncio.to_thread(trim, sandboxes, floor_bytes=floor_bytes)
        await asyncio.sleep(LOOK_EVERY_S)
