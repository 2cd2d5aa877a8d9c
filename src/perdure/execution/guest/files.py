"""Files of a guest: in and out, whole trees too, through guestd's file tools (guest/files.c says what they do).

A tool is a process, so what it sends and takes crosses reconnects and suspends like any stream. Paths are absolute, in
the image; links in them are followed inside it.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
import struct
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from perdure.errors import GuestFailed, InvalidValue, NoSpace, NotFound, PerdureError, ProtocolError
from perdure.execution.guest.process import STDOUT, Process

_PREFIX = struct.Struct("<I")
_HEAD = struct.Struct("<IIIQq")  # mode, uid, gid, size, mtime in ns; then path and link, each u32 length and bytes
_HEAD_MAX_BYTES = 16 << 10
_EXTENT = struct.Struct("<QQ")  # offset, length
_SPARSE = 1 << 31  # in the mode: the content is extents
_SPARSE_LEAST_BYTES = 256 << 10  # smaller files are sent whole
_ZEROS = bytes(1 << 20)
_INVALID = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.EBADMSG, errno.ELOOP, errno.ENAMETOOLONG}
_KILL = 9
_ACK_BYTES = 64 << 10


@dataclass(frozen=True)
class FileEntry:
    """What a guest's file system says of one file."""

    path: str  # relative to what was asked for; "" is that itself
    mode: int  # st_mode, with its type bits
    uid: int = 0
    gid: int = 0
    size: int = 0  # bytes of content; 0 if not a regular file
    mtime_ns: int = 0
    link: str = ""  # target of a symbolic link; of a regular file: the path of the entry before that it is a name of
    sparse: bool = False  # it has holes, which are no part of what crosses the channel


Entries = AsyncGenerator[tuple[FileEntry, AsyncIterator[bytes]], None]


class ToolStarter(Protocol):
    async def tool(self, *argv: str) -> Process: ...


class GuestFiles:
    """All methods raise NotFound, InvalidValue (it exists, is a directory …), NoSpace or GuestFailed."""

    def __init__(self, session: ToolStarter) -> None:
        self._session = session
        self._extended: bool | None = None

    async def takes_links(self) -> bool:
        """Whether ``unpack`` takes other names of a file (and holes): guests of older snapshots do not."""
        if self._extended is None:
            try:
                await self._run("extended")
                self._extended = True
            except GuestFailed:
                self._extended = False
        return self._extended

    async def stat(self, path: str, *, follow: bool = True) -> FileEntry:
        """The entry at ``path``; ``follow``: what a symbolic link there leads to."""
        entries = [entry async for entry, _ in self._packed("f" if follow else "-", path)]
        if not entries:
            raise ProtocolError(f"guest: no answer about {path}")
        return entries[0]

    async def list(self, path: str) -> list[FileEntry]:
        """What is in the directory ``path``, sorted by name."""
        entries = [entry async for entry, _ in self._packed("fd", path)]
        if not entries or not stat.S_ISDIR(entries[0].mode):
            raise InvalidValue(f"{path}: not a directory")
        return sorted(entries[1:], key=lambda entry: entry.path)

    async def read(self, path: str) -> AsyncGenerator[bytes, None]:
        """The content of a regular file."""
        async with aclosing(self._packed("fc", path)) as entries:
            async for entry, content in entries:
                if not stat.S_ISREG(entry.mode):
                    raise InvalidValue(f"{path}: not a regular file")
                async for chunk in content:
                    yield chunk

    def pack(self, path: str, *, follow: bool = False) -> Entries:
        """The tree at ``path``, parents first, each entry with its content (empty unless it is a regular file): what a
        tar writer needs. A file with several names has its content with the first of them. Other file systems mounted
        below are named, not entered, but for volumes. Take each content before the next entry; if you leave early,
        close it (``contextlib.aclosing``)."""
        return self._packed("rcshf" if follow else "rcsh", path)

    async def unpack(self, path: str, entries: AsyncIterator[tuple[FileEntry, AsyncIterator[bytes]]]) -> None:
        """Make each entry below the directory ``path``. What is there is replaced, but never a directory by a file or a
        file by a directory. Each content has exactly ``entry.size`` bytes. Devices are refused."""
        async with self._tool("unpack", path) as run:
            async for entry, content in entries:
                sparse = entry.size >= _SPARSE_LEAST_BYTES and await self.takes_links()
                await run.process.write_stdin(encode_record(replace(entry, sparse=sparse)))
                done = 0
                async for chunk in content:
                    if not sparse:
                        await run.process.write_stdin(chunk)
                    elif chunk != _ZEROS[: len(chunk)]:
                        await run.process.write_stdin(_EXTENT.pack(done, len(chunk)) + chunk)
                    done += len(chunk)
                if done != entry.size:
                    raise InvalidValue(f"{entry.path}: its content has not the {entry.size} bytes it was said to have")
                if sparse:
                    await run.process.write_stdin(_EXTENT.pack(done, 0))

    async def write(
        self, path: str, data: AsyncIterator[bytes], *, size: int, mode: int = 0o644, uid: int = 0, gid: int = 0
    ) -> None:
        """Make the regular file ``path`` (in place of a file or link there) with ``size`` bytes."""
        folder, name = posixpath.split(path)
        entry = FileEntry(name, stat.S_IFREG | mode, uid, gid, size)

        async def one() -> Entries:
            yield entry, data

        await self.unpack(folder, one())

    async def mkdir(self, path: str, *, mode: int = 0o755) -> None:
        """With its parents; one that is there stays as it is."""
        await self._run("mkdir", path, f"{mode:o}")

    async def symlink(self, path: str, target: str) -> None:
        await self._run("symlink", target, path)

    async def chmod(self, path: str, mode: int) -> None:
        await self._run("chmod", path, f"{mode:o}")

    async def chown(self, path: str, uid: int, gid: int) -> None:
        """Of a symbolic link: the link itself."""
        await self._run("chown", path, str(uid), str(gid))

    async def remove(self, path: str) -> None:
        """With all that is below it."""
        await self._run("remove", path)

    async def tool(self, *argv: str) -> None:
        """Any of guestd's tools that takes no input and gives no output (guest/files.c)."""
        await self._run(*argv)

    async def _run(self, *argv: str) -> None:
        async with self._tool(*argv):
            pass

    async def _packed(self, mode: str, path: str) -> Entries:
        async with self._tool("pack", mode, path) as run:
            while (head := await run.record()) is not None:
                entry = decode_record(head)
                left = entry.size if "c" in mode else 0
                content = run.extents(left) if entry.sparse else run.content(left)
                yield entry, content
                async for _ in content:
                    pass  # what the caller did not take

    def _tool(self, *argv: str) -> AbstractAsyncContextManager[ToolRun]:
        return running_tool(self._session, *argv)


@asynccontextmanager
async def running_tool(session: ToolStarter, *argv: str) -> AsyncIterator[ToolRun]:
    """A running tool. At the end of the block its input is closed, its end awaited, its failure raised."""
    for word in argv:
        if "\0" in word:
            raise InvalidValue("a path holds a NUL character")
    run = ToolRun(await session.tool(*argv), argv)
    try:
        yield run
        await run.finish()
    except BaseException:
        await run.kill()
        raise
    finally:
        if run.process.exit_status is not None:
            run.process.release()


class ToolRun:
    """One of guestd's tools while it runs."""

    def __init__(self, process: Process, argv: tuple[str, ...]) -> None:
        self.process = process
        self._argv = argv
        self._output = process.output()
        self._buffer = bytearray()
        self._errors = bytearray()

    async def record(self, most: int = _HEAD_MAX_BYTES) -> bytes | None:
        """The next record's head, of at most so many bytes; None at the end."""
        if not await self._fill(_PREFIX.size):
            return None
        (size,) = _PREFIX.unpack(self._take(_PREFIX.size))
        if size > most or not await self._fill(size):
            raise ProtocolError("guest: a file record is malformed")
        return self._take(size)

    async def content(self, left: int) -> AsyncIterator[bytes]:
        """The next so many bytes."""
        while left:
            chunk = self._take(min(left, len(self._buffer))) if self._buffer else await self._chunk()
            if chunk is None:
                await self.finish()
                raise ProtocolError("guest: a file's content ends early")
            if len(chunk) > left:
                self._buffer += chunk[left:]
                chunk = chunk[:left]
            left -= len(chunk)
            if chunk:
                yield chunk

    async def extents(self, size: int) -> AsyncIterator[bytes]:
        """The same of one with holes, which are zeros here."""
        done = 0
        while True:
            if not await self._fill(_EXTENT.size):
                await self.finish()
                raise ProtocolError("guest: a file's content ends early")
            offset, length = _EXTENT.unpack(self._take(_EXTENT.size))
            if not done <= offset <= offset + length <= size or not (length or offset == size):
                raise ProtocolError("guest: an extent of a file is malformed")
            while done < offset:
                zeros = _ZEROS[: offset - done]
                done += len(zeros)
                yield zeros
            if not length:
                return
            async for chunk in self.content(length):
                done += len(chunk)
                yield chunk

    async def finish(self) -> None:
        """End its input, and wait for its end. Raises what it failed with."""
        self.process.close_stdin()
        while await self._fill(len(self._buffer) + 1):
            pass
        status = await self.process.wait()
        if status:
            raise _error(status, self._errors.decode("utf-8", "replace").strip() or f"{self._argv[0]}: status {status}")

    async def kill(self) -> None:
        """End it where it still runs."""
        if self.process.exit_status is None:
            try:
                await self.process.signal(_KILL)
                await self.process.wait()
            except PerdureError:
                pass  # the machine is gone, or the tool ended meanwhile

    async def _fill(self, size: int) -> bool:
        """Have ``size`` bytes of its output here, or know that it has ended before that."""
        while len(self._buffer) < size:
            if (data := await self._chunk()) is None:
                return False
            self._buffer += data
        return True

    async def _chunk(self) -> bytes | None:
        """What comes next of its output; None: it has ended. Only while ``_buffer`` is empty, or is added to."""
        try:
            stream, offset, data = await anext(self._output)
        except StopAsyncIteration:
            return None
        if offset + len(data) - self.process.acknowledged(stream) >= _ACK_BYTES:  # of a window of 256 KiB or more
            self.process.ack(stream, offset + len(data))
        if stream == STDOUT:
            return data
        self._errors += data
        return b""

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken


def encode_record(entry: FileEntry) -> bytes:
    """The head of one record (guest/files.c). Raises InvalidValue for a path that leads out, or a device."""
    _check_path(entry.path)
    if stat.S_ISBLK(entry.mode) or stat.S_ISCHR(entry.mode):
        raise InvalidValue(f"{entry.path}: a device cannot be copied into a sandbox")
    mode = entry.mode | _SPARSE if entry.sparse else entry.mode
    if stat.S_ISREG(entry.mode):
        _check_path(entry.link)
    parts = [_HEAD.pack(mode, entry.uid, entry.gid, entry.size, entry.mtime_ns)]
    for text in (entry.path, entry.link):
        data = os.fsencode(text)
        parts += (_PREFIX.pack(len(data)), data)
    head = b"".join(parts)
    if len(head) > _HEAD_MAX_BYTES // 2:
        raise InvalidValue(f"{entry.path[:80]}…: the path is too long")
    return _PREFIX.pack(len(head)) + head


def decode_record(head: bytes) -> FileEntry:
    """The other way round. Raises ProtocolError, also for a path that leads out: a guest is not trusted."""
    try:
        mode, uid, gid, size, mtime_ns = _HEAD.unpack_from(head)
        at, texts = _HEAD.size, []
        for _ in range(2):
            (length,) = _PREFIX.unpack_from(head, at)
            at += _PREFIX.size
            texts.append(os.fsdecode(head[at : at + length]))
            at += length
        if at != len(head):
            raise ProtocolError("guest: a file record is malformed")
        path, link = texts
        sparse, mode = bool(mode & _SPARSE), mode & ~_SPARSE
        _check_path(path)
        if stat.S_ISREG(mode):
            _check_path(link)
    except (struct.error, InvalidValue) as error:
        raise ProtocolError("guest: a file record is malformed") from error
    return FileEntry(path, mode, uid, gid, size, mtime_ns, link, sparse)


def _check_path(path: str) -> None:
    if path.startswith("/") or ".." in path.split("/") or "\0" in path:
        raise InvalidValue(f"{path}: a path that leads out of its folder")


def _error(status: int, message: str) -> PerdureError:
    if status in (errno.ENOENT, errno.ESRCH):
        return NotFound(message)
    if status in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"in the sandbox: {message}", hint="its disk is full; give it a larger one")
    return InvalidValue(message) if status in _INVALID else GuestFailed(message)
