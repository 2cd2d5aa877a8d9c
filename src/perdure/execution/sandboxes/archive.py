"""Tar streams in and out of a guest, as ``docker cp`` and ``docker export`` speak them."""

from __future__ import annotations

import asyncio
import shutil
import stat
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO

from perdure.errors import InvalidValue
from perdure.execution.guest.session import FileEntry, GuestFiles

CHUNK_BYTES = 1 << 17
BLOCK_BYTES = 512
_KINDS = {
    tarfile.REGTYPE: stat.S_IFREG,
    tarfile.AREGTYPE: stat.S_IFREG,
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.SYMTYPE: stat.S_IFLNK,
}


async def unpack(tar_file: Path, path: str, files: GuestFiles) -> None:
    """Make the members of a tar file below the guest's folder ``path``. Raises InvalidValue, NotFound, GuestFailed."""
    try:
        with await asyncio.to_thread(tarfile.open, tar_file) as tar:
            await files.unpack(path, _members(tar))
    except tarfile.TarError as error:
        raise InvalidValue(f"not a tar stream: {error}") from error


def check(tar_file: Path) -> None:
    """Read it once from end to end: raises InvalidValue now for what ``unpack`` would refuse at the start."""

    async def all_members() -> None:
        with tarfile.open(tar_file) as tar:
            async for _ in _members(tar):
                pass

    try:
        asyncio.run(all_members())
    except tarfile.TarError as error:
        raise InvalidValue(f"not a tar stream: {error}") from error


async def _members(tar: tarfile.TarFile) -> AsyncIterator[tuple[FileEntry, AsyncIterator[bytes]]]:
    for member in tar:
        name = "/".join(part for part in member.name.split("/") if part not in ("", "."))
        if ".." in name.split("/"):
            raise InvalidValue(f"the tar stream has a member outside of its root: {member.name!r}")
        source: IO[bytes] | None = None
        if member.islnk():
            # a hard link to an earlier member: the guest gets a copy
            try:
                linked, source = tar.getmember(member.linkname), tar.extractfile(member)
            except KeyError:
                raise InvalidValue(
                    f"the tar stream has {member.name!r}, a hard link to {member.linkname!r}, which is not in it"
                ) from None
            kind, size = stat.S_IFREG, linked.size
        elif member.type in _KINDS:
            kind, size = _KINDS[member.type], member.size if member.isreg() else 0
            source = tar.extractfile(member) if member.isreg() else None
        else:
            raise InvalidValue(f"the tar stream has {member.name!r}, which is no file, folder or symbolic link")
        if not name and kind != stat.S_IFDIR:
            raise InvalidValue("the tar stream has a member without a name")
        if not name:
            continue  # the root itself
        link = member.linkname if kind == stat.S_IFLNK else ""
        mode = kind | stat.S_IMODE(member.mode)
        yield FileEntry(name, mode, member.uid, member.gid, size, int(member.mtime * 1e9), link), _content(source)


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
        if stat.S_ISREG(entry.mode):
            member.size = entry.size
        elif stat.S_ISDIR(entry.mode):
            member.type = tarfile.DIRTYPE
        elif stat.S_ISLNK(entry.mode):
            member.type, member.linkname = tarfile.SYMTYPE, entry.link
        else:
            continue  # sockets, pipes and devices do not travel
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


async def unpack_all(archives: Path, files: GuestFiles) -> int:
    """Put what was kept into the guest; how many there were."""
    kept = sorted(archives.glob("*.tar"))
    for tar_file in kept:
        await unpack(tar_file, tar_file.with_suffix(".path").read_text(errors="surrogateescape"), files)
    return len(kept)


def forget(archives: Path) -> None:
    shutil.rmtree(archives, ignore_errors=True)
