"""Disks that are full, told as such."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from perdure.errors import NoSpace


@contextlib.contextmanager
def space_checked(what: str) -> Iterator[None]:
    """Turn "disk full" and "quota used up" into NoSpace."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(
                f"no space left while writing {what}: {error.strerror}",
                hint="Free space (fcrun rm of sandboxes you do not need). What was stored before is intact.",
            ) from error
        raise
