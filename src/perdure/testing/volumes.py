"""File systems of a test's own, in a file on a loop device: some share blocks between files, one does not.

What is missing here is said by ``lacking``; a test that needs it is skipped.
"""

from __future__ import annotations

import array
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIZE_BYTES = 1 << 30  # sparse; mkfs.xfs wants 300 MiB, and a node leaves 256 free
_MAKE = {
    "btrfs": ("mkfs.btrfs", "--quiet"),
    "xfs": ("mkfs.xfs", "-q", "-m", "reflink=1"),
    "ext4": ("mkfs.ext4", "-q", "-F"),
}
_PACKAGES = {"btrfs": "btrfs-progs", "xfs": "xfsprogs", "ext4": "e2fsprogs"}
KINDS = tuple(_MAKE)
CLONES = ("btrfs", "xfs")  # those that share blocks (ioctl_ficlone(2))

# linux/fiemap.h: start, length, flags, mapped extents, extent count, -; of each extent: logical, physical, length,
# two unused, flags, three unused
_FIEMAP = 0xC020660B
_HEAD = struct.Struct("=QQLLLL")
_EXTENT = struct.Struct("=QQQQQLLLL")
_FLAG_SYNC, _SHARED = 1, 0x2000
_EXTENTS_MAX = 4096


def lacking(kind: str) -> str:
    """Why there can be no such file system here; empty: there can."""
    if os.geteuid() != 0:
        return "mounting a file system needs root"
    if _program(kind) is None:
        return f"{_MAKE[kind][0]} is not installed: it is in the package {_PACKAGES[kind]}"
    if not Path("/dev/loop-control").exists():
        return "there are no loop devices: the kernel's module loop"
    return ""


@contextmanager
def mounted(kind: str, folder: Path) -> Iterator[Path]:
    """Such a file system at ``folder``, which is made."""
    program = _program(kind)
    assert program is not None, "ask what is lacking first"
    image = folder.with_name(f"{folder.name}.{kind}")
    with image.open("wb") as file:
        file.truncate(SIZE_BYTES)
    folder.mkdir()
    subprocess.run([program, *_MAKE[kind][1:], str(image)], check=True, timeout=120, stdout=subprocess.DEVNULL)
    subprocess.run(["mount", "-t", kind, "-o", "loop", str(image), str(folder)], check=True, timeout=60)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=60)
        image.unlink()


def shared_bytes(path: Path) -> tuple[int, int]:
    """(bytes of data whose blocks another file has too, bytes of all data), as FIEMAP tells."""
    buffer = array.array("B", bytes(_HEAD.size + _EXTENTS_MAX * _EXTENT.size))
    _HEAD.pack_into(buffer, 0, 0, (1 << 64) - 1, _FLAG_SYNC, 0, _EXTENTS_MAX, 0)
    with path.open("rb") as file:
        fcntl.ioctl(file, _FIEMAP, buffer)
    count = _HEAD.unpack_from(buffer)[3]
    assert count < _EXTENTS_MAX
    shared = total = 0
    for number in range(count):
        _, _, length, _, _, flags, *_ = _EXTENT.unpack_from(buffer, _HEAD.size + number * _EXTENT.size)
        total += length
        shared += length if flags & _SHARED else 0
    return shared, total


def used_bytes(folder: Path) -> int:
    """Of the file system, once all is written out."""
    os.sync()
    facts = os.statvfs(folder)
    return (facts.f_blocks - facts.f_bfree) * facts.f_frsize


def _program(kind: str) -> str | None:
    return shutil.which(_MAKE[kind][0], path=f"{os.environ.get('PATH', '')}:/sbin:/usr/sbin")
