"""What an image is made from: a file or a pipe, as a section that can be read more than once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from perdure.errors import ImageInvalid, NoSpace, NotFound
from perdure.execution.images.bytestream import CHUNK, Section
from perdure.execution.images.diskerror import disk_error


@contextmanager
def opened(source: Path | BinaryIO, folder: Path, *, plain: bool = False) -> Iterator[Section]:
    """``source`` as a section: of its own file, or of a copy where it cannot be read twice.

    A pipe is copied as it comes; with ``plain`` a compressed file is decompressed too, because blobs in the middle
    of it are needed one by one.
    """
    try:
        if not isinstance(source, Path):
            with (folder / "spool").open("w+b") as spool:
                shutil.copyfileobj(source, spool, CHUNK)
                spool.flush()
                with _plain(Section.whole(spool, "standard input"), folder, plain) as section:
                    yield section
            return
        if not source.is_file():
            raise NotFound(f"{source} is not a file", hint="Give the path of a tar archive, or - for standard input.")
        with source.open("rb") as file, _plain(Section.whole(file, source.name), folder, plain) as section:
            yield section
            if os.fstat(file.fileno()).st_size != section.size_bytes and not section.is_compressed and not plain:
                raise ImageInvalid(f"{source} changed while it was read", hint="Write the archive, then load it.")
    except OSError as error:
        raise disk_error(error, folder) from error


@contextmanager
def _plain(section: Section, folder: Path, plain: bool) -> Iterator[Section]:
    if not plain or not section.is_compressed:
        yield section
        return
    free = shutil.disk_usage(folder).free
    with (folder / "plain").open("w+b") as file:
        reader = section.open()
        while data := reader.read(CHUNK):
            if reader.tell() > free:
                raise NoSpace(f"{section.name} does not fit decompressed in {folder.parent}", hint="Free some space.")
            file.write(data)
        file.flush()
        yield Section.whole(file, section.name)
