"""Room that is kept back for what frees room: a removal writes a record and an index before it deletes what is large.

On a full disk that would be refused, with the advice to remove something. So a small file of a node's home,
``headroom``, goes first, and is made again once there is room.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from perdure.host.paths import Home

HEADROOM_BYTES = 256 << 10
NAMES_MIN = 16  # with room for fewer new files than this, the disk counts as full too


def keep(home: Home) -> None:
    """Make the file, unless it is there, or little more would be free then. Blocking, for a moment."""
    path = home.root / "headroom"
    if _free_bytes(home) < 4 * HEADROOM_BYTES:  # never what somebody else was just given
        return
    with contextlib.suppress(OSError), path.open("ab") as file:  # what is short of it, the next one makes
        os.fchmod(file.fileno(), 0o600)
        if os.fstat(file.fileno()).st_size < HEADROOM_BYTES:  # also where who made it was killed before it was whole
            os.posix_fallocate(file.fileno(), 0, HEADROOM_BYTES)


@contextlib.contextmanager
def given(home: Home) -> Iterator[None]:
    """Where the disk is full, that room is free from now on, for the small files of something that frees more."""
    facts = os.statvfs(home.root)
    if _free_bytes(home) < HEADROOM_BYTES or (facts.f_files and facts.f_favail < NAMES_MIN):
        (home.root / "headroom").unlink(missing_ok=True)
    try:
        yield
    finally:
        keep(home)


def _free_bytes(home: Home) -> int:
    facts = os.statvfs(home.root)
    return facts.f_bavail * facts.f_frsize
