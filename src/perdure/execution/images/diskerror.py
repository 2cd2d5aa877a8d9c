"""What is said when a file cannot be read or written while an image is made."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from perdure.errors import ImageInvalid, NoSpace, PerdureError


def disk_error(error: OSError, folder: Path) -> PerdureError:
    """The error to raise for it. ``folder`` lies in the one that has no space, if none is left."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(
            f"no space in {folder.parent}", hint="Remove images that are not needed: fcrun images, fcrun rmi."
        )
    return ImageInvalid(f"cannot read or write: {error}", hint="Check the file and the rights on it.")


@contextlib.contextmanager
def image_space_checked(folder: Path) -> Iterator[None]:
    """Raise what says so, where there is no space left for what is done meanwhile; other errors as they are."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_error(error, folder) from error
        raise
