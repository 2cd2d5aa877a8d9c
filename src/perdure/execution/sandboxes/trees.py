"""Trees of files, as users see them: what changed (``diff``), a layer of an image (``commit``), a tar (``export``).

What guestd itself writes into a root is no change of the workload's: the files that name a sandbox, and the folders
that it mounts on. (docker mounts those from outside, with the same effect.)
"""

from __future__ import annotations

import hashlib
import stat
import tarfile
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import replace

from perdure.errors import InvalidValue, NotFound
from perdure.execution.guest.tree import WAS_NOT, WAS_SAME, Tree, TreeEntry
from perdure.model import Change, FileChange

OWN_FILES = frozenset({"etc/hostname", "etc/hosts", "etc/resolv.conf", "etc/machine-id"})
OWN_FOLDERS = frozenset({"proc", "sys", "dev", "run", "tmp"})
WHITEOUT, OPAQUE = ".wh.", ".wh..wh..opq"  # OCI image specification, layer.md
BLOCK_BYTES = 512
SMALL_HOLES = 64 << 10  # a file with no more than that in holes is written out

_NAMES = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}
_TYPES = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
}


async def changed(tree: Tree) -> Tree:
    """What the workload did, of what an overlay has. A folder that is as it was comes before what changed in it."""
    waiting: list[TreeEntry] = []
    async with aclosing(tree):
        async for entry, content in tree:
            waiting = [folder for folder in waiting if entry.path.startswith(folder.path + "/")]
            if _is_own(entry) or (entry.is_whiteout and entry.was == WAS_NOT):
                continue
            if entry.was == WAS_SAME and not entry.is_opaque:
                waiting.append(entry)
                continue
            for folder in waiting:
                yield folder, _nothing()
            waiting = []
            yield entry, content


async def changes(tree: Tree) -> list[Change]:
    """What the workload did, by path: A added, C changed, D deleted."""
    found = []
    async with aclosing(changed(tree)) as entries:
        async for entry, _ in entries:
            gone = entry.is_whiteout or not entry.mode
            kind = "D" if gone else "A" if entry.was == WAS_NOT else "C"
            found.append(Change(kind=kind, path=f"/{entry.path}"))
    return sorted(found, key=lambda change: change.path)


async def detailed(tree: Tree) -> list[FileChange]:
    """The same with what each path is now; the tree is read with its content."""
    found = []
    async with aclosing(changed(tree)) as entries:
        async for entry, content in entries:
            path, kind = f"/{entry.path}", stat.S_IFMT(entry.mode)
            if entry.is_whiteout or not entry.mode:
                found.append(FileChange(kind="D", path=path))
                continue
            digest = await _digest(entry, content)
            found.append(
                FileChange(
                    kind="A" if entry.was == WAS_NOT else "C",
                    path=path,
                    type=_NAMES.get(kind, "other"),
                    mode=stat.S_IMODE(entry.mode),
                    size_bytes=entry.size if kind == stat.S_IFREG else 0,
                    digest="" if kind == stat.S_IFDIR else digest,
                )
            )
    return sorted(found, key=lambda change: change.path)


async def content_of(tree: Tree, path: str, limit_bytes: int) -> bytes:
    """What a file has in it that is in the overlay; the tree is read with its content. NotFound; InvalidValue: it is no
    file, or a larger one."""
    async with aclosing(tree) as entries:
        async for entry, content in entries:
            if f"/{entry.path}" != path:
                continue
            if not stat.S_ISREG(entry.mode) or entry.size > limit_bytes:
                what = f"is larger than {limit_bytes} bytes" if stat.S_ISREG(entry.mode) else "is no file"
                raise InvalidValue(f"{path} {what}")
            return b"".join([data async for data in _filled(entry, content)])
    raise NotFound(f"{path} is as in the image, or not there", hint="Only what a sandbox changed is read like this.")


async def _digest(entry: TreeEntry, content: AsyncIterator[bytes]) -> str:
    digest = hashlib.sha256(f"{entry.link}\n{entry.node}\n".encode("utf-8", "surrogateescape"))
    if stat.S_ISREG(entry.mode):
        async for data in _filled(entry, content):
            digest.update(data)
    return f"sha256:{digest.hexdigest()}"


async def _filled(entry: TreeEntry, content: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """A file's bytes, those of its holes too."""
    at = 0
    async for offset, data in _placed(entry.extents, content):
        for piece in _zeros(offset - at):
            yield piece
        yield data
        at = offset + len(data)
    for piece in _zeros(entry.size - at):
        yield piece


def _zeros(count: int) -> Iterator[bytes]:
    piece = bytes(min(count, 1 << 20))
    while count > 0:
        yield piece[:count]
        count -= len(piece)


async def layer(tree: Tree) -> AsyncGenerator[bytes, None]:
    """The same as the tar of a layer: whiteouts, opaque markers. Devices and sockets are left out, as images have none.

    Raises InvalidValue for a name that a layer cannot hold.
    """
    links: dict[tuple[int, int], str] = {}
    async with aclosing(changed(tree)) as entries:
        async for entry, content in entries:
            folder, _, name = entry.path.rpartition("/")
            prefix = f"{folder}/" if folder else ""
            if not entry.mode:
                continue  # the marker of its folder says so
            if entry.is_whiteout:
                yield _header(tarfile.TarInfo(f"{prefix}{WHITEOUT}{name}"))
                continue
            if name.startswith(WHITEOUT):
                raise InvalidValue(
                    f"/{entry.path}: no layer of an image can hold a name that begins with {WHITEOUT}",
                    hint="Remove or rename it, then commit again.",
                )
            if stat.S_ISCHR(entry.mode) or stat.S_ISBLK(entry.mode):
                continue
            async for data in _member(entry, content, links):
                yield data
            if entry.is_opaque:
                yield _header(tarfile.TarInfo(f"{entry.path}/{OPAQUE}"))
    yield bytes(2 * BLOCK_BYTES)


async def whole(tree: Tree) -> AsyncGenerator[bytes, None]:
    """A root as one tar; what names the sandbox is empty in it."""
    links: dict[tuple[int, int], str] = {}
    async with aclosing(tree):
        async for entry, content in tree:
            if entry.path in OWN_FILES and stat.S_ISREG(entry.mode):
                entry, content = replace(entry, size=0, extents=()), _nothing()
            async for data in _member(entry, content, links):
                yield data
    yield bytes(2 * BLOCK_BYTES)


def _is_own(entry: TreeEntry) -> bool:
    if entry.path in OWN_FILES:
        return not stat.S_ISDIR(entry.mode)
    top, _, rest = entry.path.partition("/")
    return top in OWN_FOLDERS and not rest and stat.S_ISDIR(entry.mode) and entry.was in (WAS_NOT, WAS_SAME)


async def _nothing() -> AsyncIterator[bytes]:
    for data in tuple[bytes, ...]():
        yield data


async def _member(
    entry: TreeEntry, content: AsyncIterator[bytes], links: dict[tuple[int, int], str]
) -> AsyncGenerator[bytes, None]:
    """One member of a tar. ``links``: the first name of each file that has several, which the others are links to."""
    kind = _TYPES.get(stat.S_IFMT(entry.mode))
    if kind is None:
        return  # a socket
    member = tarfile.TarInfo(entry.path)
    member.type, member.mode = kind, stat.S_IMODE(entry.mode)
    member.uid, member.gid, member.mtime = entry.uid, entry.gid, entry.mtime_ns // 10**9
    member.linkname = entry.link
    member.devmajor, member.devminor = (entry.node >> 32, entry.node & 0xFFFFFFFF) if entry.node else (0, 0)
    member.pax_headers = {
        f"SCHILY.xattr.{name}": value.decode("utf-8", "surrogateescape") for name, value in entry.attributes.items()
    }
    if entry.names > 1 and not stat.S_ISDIR(entry.mode):
        first = links.setdefault(entry.file, entry.path)
        if first != entry.path:
            member.type, member.linkname = tarfile.LNKTYPE, first
            yield _header(member)
            return
    if member.type != tarfile.REGTYPE:
        yield _header(member)
        return
    async with aclosing(_file(member, entry, content)) as pieces:
        async for data in pieces:
            yield data


async def _file(
    member: tarfile.TarInfo, entry: TreeEntry, content: AsyncIterator[bytes]
) -> AsyncGenerator[bytes, None]:
    stored = sum(length for _, length in entry.extents)
    if entry.size - stored > SMALL_HOLES:  # GNU sparse format 1.0: a map in front of the data
        numbers = [len(entry.extents), *(number for extent in entry.extents for number in extent)]
        lead = _padded("".join(f"{number}\n" for number in numbers).encode())
        sparse = {"major": "1", "minor": "0", "name": entry.path, "realsize": str(entry.size)}
        member.pax_headers = {**member.pax_headers, **{f"GNU.sparse.{key}": value for key, value in sparse.items()}}
        member.size = len(lead) + stored
        yield _header(member) + lead
        async for data in content:
            yield data
    else:
        member.size = entry.size
        yield _header(member)
        at = 0
        pieces = _placed(entry.extents, content)
        async for offset, data in pieces:
            yield bytes(offset - at) + data
            at = offset + len(data)
        yield bytes(entry.size - at)
    yield bytes(-member.size % BLOCK_BYTES)


async def _placed(
    extents: tuple[tuple[int, int], ...], content: AsyncIterator[bytes]
) -> AsyncIterator[tuple[int, bytes]]:
    """The content's bytes, with the offset that each piece has in its file."""
    left = iter(extents)
    offset = length = 0
    async for data in content:
        while data:
            if not length:
                offset, length = next(left)
            piece, data = data[:length], data[length:]
            yield offset, piece
            offset, length = offset + len(piece), length - len(piece)


def _header(member: tarfile.TarInfo) -> bytes:
    if member.isdir():
        member.name = member.name.rstrip("/") + "/"
    return member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK_BYTES)
