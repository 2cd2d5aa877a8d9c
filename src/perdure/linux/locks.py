"""Lock files (flock(2)): whether somebody holds one."""

from __future__ import annotations

import fcntl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path


def is_held(path: Path) -> bool:
    """Somebody holds a lock on this file, shared or exclusive; False where there is no such file."""
    try:
        with path.open("r+b") as file:  # over NFS only what is open for writing can be locked exclusively
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False
