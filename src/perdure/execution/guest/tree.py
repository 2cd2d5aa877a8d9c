"""What a guest's root is made of, with all that a tar or an image's layer keeps of it; and its processes.

The host's end of guestd's tools ``tree`` and ``top`` (guest/tree.c, guest/top.c; docs/formats/channel.md, "File
records"). A guest is not trusted: every record is checked.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

from perdure.errors import ProtocolError
from perdure.execution.guest.files import ToolStarter, running_tool

_LENGTH = struct.Struct("<I")
_HEAD = struct.Struct("<IIIQqQQIQBB")
_EXTENT = struct.Struct("<QQ")
_HEAD_MAX_BYTES = 512 << 10
_EXTENTS_MAX = 1024
_NAME_MAX = 255  # bytes of one part of a path (limits.h)
_PROCESSES_MAX = 1 << 16
_PROCESSES = re.compile(r"processes 1 (\d{1,15}) (\d{1,15}) (\d{1,15})", re.ASCII)

UPPER, IMAGE, ROOT = "/overlay/upper", "/image", "."  # folders of a guest (guest/mounts.c)
WAS_NOT, WAS, WAS_SAME = range(3)


@dataclass(frozen=True)
class TreeEntry:
    """One file, folder, link or node of a tree."""

    path: str  # relative to the top
    mode: int  # st_mode, with its type bits; 0: it is not there any more (below an opaque folder)
    uid: int
    gid: int
    size: int
    mtime_ns: int
    file: tuple[int, int]  # device and inode: equal for the names of one file
    names: int  # how many names the file has
    node: int  # of a device: major << 32 | minor
    was: int  # what lies below it: WAS_NOT, WAS, WAS_SAME (a folder with the same mode and owner)
    is_opaque: bool  # a folder that hides what lies below it
    link: str
    attributes: dict[str, bytes]
    extents: tuple[tuple[int, int], ...]  # (offset, length) of what is not a hole, ascending; only with content

    @property
    def is_whiteout(self) -> bool:
        """What stands in the upper folder of an overlay for what was deleted."""
        return stat.S_ISCHR(self.mode) and self.node == 0


@dataclass(frozen=True)
class GuestProcess:
    """One process, as proc(5) has it."""

    uid: int  # effective
    stat: str  # proc_pid_stat(5)
    command: tuple[str, ...]  # its arguments; empty: it has given them up, or is a zombie


@dataclass(frozen=True)
class GuestProcesses:
    """All processes of a workload at one moment."""

    now: int  # seconds since the epoch, by the guest's clock
    uptime: float  # seconds since its boot
    memory_kib: int
    processes: tuple[GuestProcess, ...]


Tree = AsyncGenerator[tuple[TreeEntry, AsyncIterator[bytes]], None]


class GuestTree:
    """All methods raise what ``GuestFiles`` does; GuestFailed too for a guest from before there was this."""

    def __init__(self, session: ToolStarter) -> None:
        self._session = session

    def changes(self, *, content: bool) -> Tree:
        """What the overlay has over the image: folders first, whiteouts for what was deleted."""
        return self._tree("c" if content else "-", UPPER, IMAGE)

    def whole(self) -> Tree:
        """The whole root as the workload sees it, with content; other file systems are named, not entered."""
        return self._tree("c", ROOT)

    def of(self, folder: str, lower: str, *, content: bool = True) -> Tree:
        """The same of any folder over any other."""
        return self._tree("c" if content else "-", folder, lower)

    async def _tree(self, *argv: str) -> Tree:
        """Take each content before the next entry; if you leave early, close it (``contextlib.aclosing``)."""
        async with running_tool(self._session, "tree", *argv) as run:
            order = _Order()
            while (head := await run.record(_HEAD_MAX_BYTES)) is not None:
                entry = decode(head)
                order.check(entry)
                content = run.content(sum(length for _, length in entry.extents))
                yield entry, content
                async for _ in content:
                    pass  # what the caller did not take

    async def processes(self) -> GuestProcesses:
        """What runs now, in the order of the pids."""
        found: list[GuestProcess] = []
        async with running_tool(self._session, "top") as run:
            first = await run.record(_HEAD_MAX_BYTES)
            said = _PROCESSES.fullmatch(_text(first or b"", 0)[0].decode("ascii", "replace"))
            if said is None:
                raise ProtocolError("guest: its list of processes is malformed")
            while (record := await run.record(_HEAD_MAX_BYTES)) is not None:
                if len(found) == _PROCESSES_MAX:
                    raise ProtocolError("guest: its list of processes has no end")
                found.append(_process(record))
        now, hundredths, memory_kib = map(int, said.groups())
        return GuestProcesses(now, hundredths / 100, memory_kib, tuple(found))


class _Order:
    """Each entry is in a folder that was just named, and no name comes twice there: so nothing can be put below a link.

    Whoever unpacks what becomes of a tree trusts that.
    """

    def __init__(self) -> None:
        self._open: list[tuple[str, set[str]]] = [("", set())]  # the folders from the top to where it is, their names

    def check(self, entry: TreeEntry) -> None:
        """Raises ProtocolError."""
        folder, _, name = entry.path.rpartition("/")
        while self._open and self._open[-1][0] != folder:
            self._open.pop()
        if not self._open or name in self._open[-1][1]:
            raise ProtocolError(f"guest: {entry.path!r} is out of order in its tree of files")
        self._open[-1][1].add(name)
        if stat.S_ISDIR(entry.mode):
            self._open.append((entry.path, set()))


def decode(head: bytes) -> TreeEntry:
    """The head of one record of ``tree``. Raises ProtocolError."""
    try:
        mode, uid, gid, size, mtime_ns, device, inode, names, node, was, opaque = _HEAD.unpack_from(head)
        path, at = _text(head, _HEAD.size)
        link, at = _text(head, at)
        (count,) = _LENGTH.unpack_from(head, at)
        at += _LENGTH.size
        attributes = {}
        for _ in range(count):
            name, at = _text(head, at)
            attributes[name.decode()], at = _text(head, at)
        (count,) = _LENGTH.unpack_from(head, at)
        at += _LENGTH.size
        if count > _EXTENTS_MAX or at + count * _EXTENT.size != len(head):
            raise ProtocolError("guest: a file record is malformed")
        extents = tuple(_EXTENT.iter_unpack(head[at:]))
    except (struct.error, UnicodeDecodeError) as error:
        raise ProtocolError("guest: a file record is malformed") from error
    _check(path, size, extents)
    return TreeEntry(
        os.fsdecode(path),
        mode,
        uid,
        gid,
        size,
        mtime_ns,
        (device, inode),
        names,
        node,
        was,
        bool(opaque),
        os.fsdecode(link),
        attributes,
        extents,
    )


def _check(path: bytes, size: int, extents: tuple[tuple[int, int], ...]) -> None:
    if any(part in (b"", b".", b"..") or len(part) > _NAME_MAX for part in path.split(b"/")) or b"\0" in path:
        raise ProtocolError("guest: a file record has a path that leads out of its folder")
    end = 0
    for offset, length in extents:
        if offset < end or not 0 < length <= size - offset:
            raise ProtocolError("guest: the extents of a file record contradict its size")
        end = offset + length


def _text(data: bytes, at: int) -> tuple[bytes, int]:
    """A text, and where what follows it begins. Raises ProtocolError."""
    try:
        (length,) = _LENGTH.unpack_from(data, at)
    except struct.error:
        raise ProtocolError("guest: a record is malformed") from None
    at += _LENGTH.size
    if at + length > len(data):
        raise ProtocolError("guest: a record is malformed")
    return data[at : at + length], at + length


def _process(record: bytes) -> GuestProcess:
    if len(record) < _LENGTH.size:
        raise ProtocolError("guest: its list of processes is malformed")
    (uid,) = _LENGTH.unpack_from(record)
    status, at = _text(record, _LENGTH.size)
    command, end = _text(record, at)
    if end != len(record):
        raise ProtocolError("guest: its list of processes is malformed")
    words = command.rstrip(b"\0").split(b"\0") if command.rstrip(b"\0") else []
    return GuestProcess(uid, status.decode("utf-8", "replace").strip(), tuple(os.fsdecode(word) for word in words))
