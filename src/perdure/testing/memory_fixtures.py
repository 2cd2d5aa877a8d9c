"""A folder in memory, and as a fixture ``tmp_path``. For tests that sync often and outlive no kernel."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["memory_folder", "tmp_path"]

MEMORY, ROOM_MIN_BYTES = Path("/dev/shm"), 1 << 30


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    with memory_folder(tmp_path) as folder:
        yield folder


@contextmanager
def memory_folder(otherwise: Path | None = None) -> Iterator[Path]:
    """Where there is no such room it is ``otherwise``, on the disk: all that differs is how long a sync takes."""
    is_roomy = _is_roomy()
    if not is_roomy and otherwise is not None:
        yield otherwise
        return
    place = MEMORY if is_roomy else None
    with tempfile.TemporaryDirectory(prefix="perdure-test-", dir=place, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _is_roomy() -> bool:
    """Memory takes what a test writes, and runs programs."""
    try:
        found = os.statvfs(MEMORY)
    except OSError:
        return False
    has_room = found.f_bavail * found.f_frsize >= ROOM_MIN_BYTES and os.access(MEMORY, os.W_OK)
    return has_room and not found.f_flag & (os.ST_NOEXEC | os.ST_NODEV)
