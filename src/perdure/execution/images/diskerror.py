"""What is said when a file cannot be read or written while an image is made."""

from __future__ import annotations

import errno
from pathlib import Path

from perdure.errors import ImageInvalid, NoSpace, PerdureError


def disk_error(error: OSError, folder: Path) -> PerdureError:
    """The error to raise for it. ``folder`` lies in the one that has no space, if none is left."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(
            f"no space in {folder.parent}", hint="Remove images that are not needed: fcrun images, fcrun rmi."
        )
    return ImageInvalid(f"cannot read or write: {error}", hint="Check the file and the rights on it.")
