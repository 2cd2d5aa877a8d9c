"""The disks of suspended sandboxes, kept as they are so that these go on at once: ``sandboxes/ID/disk``.

Each may be deleted at any time, as the snapshot has it too. Blocking: run it in a thread.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

SECTOR_BYTES = 512


def trim(sandboxes: Path, limit_bytes: int) -> int:
    """Delete those that were suspended longest ago, until the others take no more than this; the bytes freed."""
    found: list[tuple[int, int, Path]] = []
    for path in sandboxes.glob("*/disk"):
        with contextlib.suppress(OSError):  # its sandbox has just taken it
            facts = path.stat()
            found.append((facts.st_ctime_ns, facts.st_blocks * SECTOR_BYTES, path))  # it was renamed when it was kept
    total = sum(size for _, size, _ in found)
    freed = 0
    for _, size, path in sorted(found):
        if total - freed <= limit_bytes:
            break
        path.unlink(missing_ok=True)
        freed += size
    return freed
