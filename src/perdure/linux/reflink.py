"""Clones: files that share their blocks until one is written (ioctl_ficlone(2); btrfs, xfs, bcachefs)."""

from __future__ import annotations

import errno
import fcntl

FICLONE = 0x40049409
_CANNOT = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.EBADF)


def clone(source: int, target: int) -> bool:
    """Make the target (open, empty) share the source's blocks. False: this file system cannot. Raises OSError."""
    try:
        fcntl.ioctl(target, FICLONE, source)
    except OSError as error:
        if error.errno in _CANNOT:
            return False
        raise
    return True
