"""Tar streams in and out of a guest, as ``docker cp`` and ``docker export`` speak them."""

from __future__ import annotations

import asyncio
import posixpath
import shutil
import stat
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import IO

from perdure.errors import InvalidValue
from perdure.execution.guest.session import FileEntry, GuestFiles

CHUNK_BYTES = 1 << 18
BLOCK_BYTES = 512
_KINDS = {tarfile.DIRTYPE: stat.S_IFDIR, tarfile.SYMTYPE: stat.S_IFLNK, tarfile.FIFOTYPE: stat.S_IFIFO}


async def unpack(tar_file: Path, path: str, files: GuestFiles) -> None:
    """Make the members of a tar file below the guest's folder ``path``. Raises InvalidValue, NotFound, GuestFailed."""
    try:
        with await asyncio.to_thread(tarfile.open, tar_file) as tar:
            await files.unpack(path, _members(tar, files.takes_links))
    except tarfile.TarError as error:
        raise InvalidValue(f"not a tar stream: {error}") from error


def check(tar_file: Path) -> None:
    """Read it once from end to end: raises InvalidValue now for what ``unpack`` would refuse at the start."""

    async def all_members() -> None:
        with tarfile.open(tar_file) as tar:
            async for _ in _members(tar, _no):
                pass

    try:
        asyncio.run(all_members())
    except tarfile.TarError as error:
        raise InvalidValue(f"not a tar stream: {error}") from error


async def _no() -> bool:
    return False


async def _members(
    tar: tarfile.TarFile, takes_links: Callable[[], Awaitable[bool]]
) -> AsyncIterator[tuple[FileEntry, AsyncIterator[bytes]]]:
    for member in tar:
        name, link = _inside(member.name), member.linkname
        source: IO[bytes] | None = None
        if member.islnk():
            # a hard link to an earlier member; an older guest gets a copy
            try:
                linked, source = tar.getmember(member.linkname), tar.extractfile(member)
            except KeyError:
                raise InvalidValue(
                    f"the tar stream has {member.name!r}, a hard link to {member.linkname!r}, which is not in it"
                ) from None
            kind, size = stat.S_IFREG, linked.size
            if await takes_links():
                link, size, source = _inside(linked.name), 0, None
            else:
                link = ""
        elif member.isreg():
            kind, size, source, link = stat.S_IFREG, member.size, tar.extractfile(member), ""
        elif member.type in _KINDS:
            kind, size = _KINDS[member.type], 0
        else:
            raise InvalidValue(f"the tar stream has {member.name!r}, which is no file, folder, link or pipe")
        if not name and kind != stat.S_IFDIR:
            raise InvalidValue("the tar stream has a member without a name")
        if not name:
            continue  # the root itself
        mode = kind | stat.S_IMODE(member.mode)
        yield FileEntry(name, mode, member.uid, member.gid, size, int(member.mtime * 1e9), link), _content(source)


def _inside(name: str) -> str:
    """The name below the root of the stream. Raises InvalidValue for one that leads out."""
    inside = "/".join(part for part in name.split("/") if part not in ("", "."))
    if ".." in inside.split("/"):
        raise InvalidValue(f"the tar stream has a member outside of its root: {name!r}")
    return inside


async def _content(source: IO[bytes] | None) -> AsyncIterator[bytes]:
    while source is not None and (data := source.read(CHUNK_BYTES)):
        yield data


async def pack(path: str, files: GuestFiles) -> AsyncIterator[bytes]:
    """The tar stream of a guest's file or tree; member names begin with the last part of ``path``."""
    root = path.rstrip("/").rsplit("/", 1)[-1] or "."
    async for entry, content in files.pack(path):
        member = tarfile.TarInfo(f"{root}/{entry.path}" if entry.path else root)
        member.mode, member.uid, member.gid = stat.S_IMODE(entry.mode), entry.uid, entry.gid
        member.mtime = entry.mtime_ns / 1e9
        if stat.S_ISREG(entry.mode) and entry.link:
            member.type, member.linkname = tarfile.LNKTYPE, f"{root}/{entry.link}"
        elif stat.S_ISREG(entry.mode):
            member.size = entry.size
        elif stat.S_ISDIR(entry.mode):
            member.type = tarfile.DIRTYPE
        elif stat.S_ISLNK(entry.mode):
            member.type, member.linkname = tarfile.SYMTYPE, entry.link
        elif stat.S_ISFIFO(entry.mode):
            member.type = tarfile.FIFOTYPE
        else:
            continue  # sockets and devices do not travel
        yield member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        sent = 0
        async for data in content:
            # a file that grows or shrinks meanwhile still fills exactly the size that its header says
            data = data[: member.size - sent]
            sent += len(data)
            if data:
                yield data
        yield b"\0" * (member.size - sent + -member.size % BLOCK_BYTES)
    yield b"\0" * (2 * BLOCK_BYTES)


def keep(archives: Path, tar_file: Path, path: str) -> None:
    """Keep a tar file for the start."""
    archives.mkdir(mode=0o700, exist_ok=True)
    number = len(list(archives.glob("*.tar"))) + 1
    (archives / f"{number:04}.path").write_text(path, errors="surrogateescape")
    tar_file.replace(archives / f"{number:04}.tar")


def found(archives: Path, path: str) -> int | None:
    """st_mode of what will be at an absolute path once all that is kept is unpacked; None: nothing of it is there.
    Blocking."""
    for tar_file in sorted(archives.glob("*.tar"), reverse=True):
        base = tar_file.with_suffix(".path").read_text(errors="surrogateescape")
        mode: int | None = None
        with tarfile.open(tar_file) as tar:
            for member in tar:
                name = posixpath.normpath(posixpath.join(base, member.name))
                if name == path:
                    kind = stat.S_IFREG if member.isreg() or member.islnk() else _KINDS.get(member.type, 0)
                    mode = kind | stat.S_IMODE(member.mode)
                elif mode is None and name.startswith(path.rstrip("/") + "/"):
                    mode = stat.S_IFDIR | 0o755  # made on the way
        if mode is not None:
            return mode
    return None


async def unpack_all(archives: Path, files: GuestFiles) -> int:
    """Put what was kept into the guest; how many there were."""
    kept = sorted(archives.glob("*.tar"))
    for tar_file in kept:
        await unpack(tar_file, tar_file.with_suffix(".path").read_text(errors="surrogateescape"), files)
    return len(kept)


def forget(archives: Path) -> None:
    shutil.rmtree(archives, ignore_errors=True)
