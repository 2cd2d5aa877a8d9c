"""Archives in the "newc" format, which Linux unpacks as an initramfs (Documentation/driver-api/early-userspace).

An entry is ``070701`` and thirteen fields of eight hex digits, the name with a NUL, padding to 4, the data, padding
to 4. Linux accepts several archives one after the other: later entries replace earlier ones.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass

TRAILER = "TRAILER!!!"
NAME_MAX = 4096


@dataclass(frozen=True)
class Entry:
    """One file or folder; ``mode`` holds type and permissions, as in ``st_mode``."""

    name: str  # relative, without a leading slash
    mode: int
    data: bytes = b""

    @staticmethod
    def folder(name: str) -> Entry:
        return Entry(name, stat.S_IFDIR | 0o755)

    @staticmethod
    def file(name: str, data: bytes, permissions: int = 0o644) -> Entry:
        return Entry(name, stat.S_IFREG | permissions, data)


def archive(entries: Iterable[Entry]) -> bytes:
    """The entries as one archive, owned by root, dated 0: the same entries give the same bytes."""
    parts = []
    for number, entry in enumerate(entries, start=1):
        parts.append(_encode(number, entry))
    parts.append(_encode(0, Entry(TRAILER, 0)))
    return b"".join(parts)


def _encode(inode: int, entry: Entry) -> bytes:
    name = entry.name.encode() + b"\0"
    if len(name) > NAME_MAX or entry.name.startswith("/"):
        raise ValueError(f"a name that an initramfs cannot hold: {entry.name[:80]!r}")
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, 0, 0, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + name) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
