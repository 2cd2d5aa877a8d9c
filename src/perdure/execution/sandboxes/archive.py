"""Tar streams in and out of a guest, as ``docker cp`` and ``docker export`` speak them."""

from __future__ import annotations

import asyncio
import posixpath
import shutil
import stat
import tarfile
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

from perdure.errors import InvalidValue
from perdure.execution.guest.session import FileEntry, GuestFiles
from perdure.execution.sandboxes.arriving import Arriving

CHUNK_BYTES = 1 << 18
BLOCK_BYTES = 512
T = TypeVar("T")
_KINDS = {tarfile.DIRTYPE: stat.S_IFDIR, tarfile.SYMTYPE: stat.S_IFLNK, tarfile.FIFOTYPE: stat.S_IFIFO}


async def unpack(tar_file: Path, path: str, files: GuestFiles) -> None:
    """Make the members of a tar file below the guest's folder ``path``. Raises InvalidValue, NotFound, GuestFailed."""
    with tar_file.open("rb") as file:
        await _unpack(file, path, files)


async def unpack_arriving(pieces: AsyncIterator[bytes], kept: Path, path: str, files: GuestFiles) -> None:
    """The same of a tar stream, while it comes; ``kept``: a new file for what has come. Raises NoSpace too."""
    with Arriving(kept) as stream:
        filling = asyncio.create_task(stream.fill(pieces))
        try:
            await _unpack(stream, path, files)
            await filling  # what follows the end of a tar means nothing, but its sender wants to be rid of it
        except BaseException:
            stream.end(InvalidValue("the tar stream was not unpacked to its end"))
            filling.cancel()
            await asyncio.gather(filling, return_exceptions=True)
            raise


async def _unpack(file: IO[bytes] | Arriving, path: str, files: GuestFiles) -> None:
    # a thread of its own: it may wait for a sender, and the loop's are everybody's
    with ThreadPoolExecutor(1, thread_name_prefix="unpack") as pool:

        def run(work: Callable[..., T], *values: Any) -> asyncio.Future[T]:
            return asyncio.get_running_loop().run_in_executor(pool, work, *values)

        try:
            tar = await run(lambda: tarfile.open(fileobj=file, mode="r:"))  # noqa: SIM115 - the file is the caller's
            await files.unpack(path, _members(_steps(tar), files.takes_links, run))
        except tarfile.TarError as error:
            raise InvalidValue(f"not a tar stream: {error}") from error
        except BaseException:
            if isinstance(file, Arriving):
                file.end(InvalidValue("it is not wanted any more"))  # so that the thread ends
            raise


def check(tar_file: Path) -> None:
    """Read it once from end to end: raises InvalidValue now for what ``unpack`` would refuse at the start."""
    try:
        with tarfile.open(tar_file) as tar:
            for _ in _steps(tar):
                pass
    except tarfile.TarError as error:
        raise InvalidValue(f"not a tar stream: {error}") from error


class _Step(NamedTuple):
    entry: FileEntry
    first: bytes  # of its content
    rest: IO[bytes] | None
    copy_of: tarfile.TarInfo | None  # what a hard link leads to


def _steps(tar: tarfile.TarFile) -> Iterator[_Step]:
    for member in tar:
        name, link, size = _inside(member.name), "", 0
        source: IO[bytes] | None = None
        linked: tarfile.TarInfo | None = None
        if member.islnk():
            kind, linked = stat.S_IFREG, _linked(tar, member)
            link, source = _inside(linked.name), tar.extractfile(member)
        elif member.isreg():
            kind, size, source = stat.S_IFREG, member.size, tar.extractfile(member)
        elif member.type in _KINDS:
            kind = _KINDS[member.type]
            link = member.linkname if kind == stat.S_IFLNK else ""
        else:
            raise InvalidValue(f"the tar stream has {member.name!r}, which is no file, folder, link or pipe")
        if not name and kind != stat.S_IFDIR:
            raise InvalidValue("the tar stream has a member without a name")
        if not name:
            continue  # the root itself
        entry = FileEntry(
            name, kind | stat.S_IMODE(member.mode), member.uid, member.gid, size, int(member.mtime * 1e9), link
        )
        first = source.read(CHUNK_BYTES) if source is not None and linked is None else b""
        yield _Step(entry, first, source, linked)


def _linked(tar: tarfile.TarFile, member: tarfile.TarInfo) -> tarfile.TarInfo:
    """What a hard link leads to: an earlier member."""
    try:
        return tar._find_link_target(member)  # type: ignore[attr-defined,no-any-return]  # as extractfile() finds it
    except KeyError:
        raise InvalidValue(
            f"the tar stream has {member.name!r}, a hard link to {member.linkname!r}, which is not in it"
        ) from None


async def _members(
    steps: Iterator[_Step],
    takes_links: Callable[[], Awaitable[bool]],
    run: Callable[..., asyncio.Future[Any]],
) -> AsyncIterator[tuple[FileEntry, AsyncIterator[bytes]]]:
    while (step := await run(next, steps, None)) is not None:
        entry, rest = step.entry, step.rest
        if step.copy_of is not None and await takes_links():
            rest = None
        elif step.copy_of is not None:  # an older guest gets a copy
            entry = replace(entry, link="", size=step.copy_of.size)
        yield entry, _content(step.first, rest, run)


async def _content(
    first: bytes, rest: IO[bytes] | None, run: Callable[..., asyncio.Future[Any]]
) -> AsyncIterator[bytes]:
    if first:
        yield first
        if len(first) < CHUNK_BYTES:
            return
    while rest is not None and (data := await run(rest.read, CHUNK_BYTES)):
        yield data


def _inside(name: str) -> str:
    """The name below the root of the stream. Raises InvalidValue for one that leads out."""
    inside = "/".join(part for part in name.split("/") if part not in ("", "."))
    if ".." in inside.split("/"):
        raise InvalidValue(f"the tar stream has a member outside of its root: {name!r}")
    return inside


async def pack(path: str, files: GuestFiles) -> AsyncGenerator[bytes, None]:
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
