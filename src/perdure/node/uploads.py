"""Bodies of requests that may be larger than memory, as files."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from aiohttp import web

from perdure.execution.snapshots.diskspace import space_checked
from perdure.host.paths import Home
from perdure.node import visit


def new(home: Home) -> Path:
    """The path of a file that is not there yet, in a temporary folder of its own, so that errors about it call it by a
    name that says something. ``forget`` it. Raises NoSpace."""
    with space_checked("the archive"):
        return Path(tempfile.mkdtemp(dir=home.run, prefix="upload-")) / "the archive"


async def received(home: Home, request: web.Request) -> Path:
    """The body, in a ``new`` file. Raises NoSpace."""
    path = new(home)
    try:
        with space_checked("the archive"), path.open("wb") as file:
            async for data in visit.pieces(request):
                file.write(data)
    except BaseException:
        forget(path)
        raise
    return path


def forget(upload: Path) -> None:
    shutil.rmtree(upload.parent, ignore_errors=True)
