"""A file system that is really full (ENOSPC): a small tmpfs of the test's own, filled to the last page or file."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

FILES = 1000  # names that there is room for, where nothing else is said


@contextmanager
def mounted(folder: Path, size_mib: int, files: int = FILES) -> Iterator[Path]:
    """A file system of this size at ``folder``, which is made. The test is skipped where none can be mounted."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder.mkdir()
    options = f"size={size_mib}m,nr_inodes={files}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True, timeout=60)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=60)


def fill(folder: Path, pages: int) -> None:
    """Leave room for the content of so many pages."""
    facts = os.statvfs(folder)
    with (folder / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, (facts.f_bavail - pages) * facts.f_bsize)
    assert os.statvfs(folder).f_bavail == pages


def fill_names(folder: Path, files: int) -> None:
    """Leave room for so many new files or folders."""
    (folder / "fillers").mkdir()
    for number in range(os.statvfs(folder).f_favail - files):
        (folder / "fillers" / str(number)).touch()
    assert os.statvfs(folder).f_favail == files


def clear(folder: Path) -> None:
    """Take back what ``fill`` and ``fill_names`` took."""
    (folder / "filler").unlink(missing_ok=True)
    shutil.rmtree(folder / "fillers", ignore_errors=True)
