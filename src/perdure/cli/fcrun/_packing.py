"""A tar stream of files of this machine, made as it is read."""

from __future__ import annotations

import io
import os
import stat
import sys
import tarfile
from collections.abc import Iterator

from perdure.errors import InvalidValue

CHUNK_BYTES = 1 << 20
_BLOCK = 512


def packed(source: str, name: str, *, follow: bool, keep_owner: bool) -> Iterator[bytes]:
    """A file or tree, under this name in the stream (``.``: its root), as root's or with its owners. ``follow``: what a
    symbolic link ``source`` leads to. Raises InvalidValue for what cannot be read."""
    top = os.path.realpath(source) if follow or source.endswith(("/", "/.")) else source
    headers = tarfile.TarFile(fileobj=io.BytesIO(), mode="w", format=tarfile.PAX_FORMAT)  # it knows files by inode
    waiting = [(top, name)]
    try:
        while waiting:
            path, inside = waiting.pop()
            member = headers.gettarinfo(path, inside)
            if member is None or not (
                member.isreg() or member.isdir() or member.issym() or member.islnk() or _is_pipe(member)
            ):
                sys.stderr.write(f"fcrun: {path} is a socket or a device, and is left out\n")
                continue
            member.name = inside  # as it is: it would take slashes away
            if not keep_owner:
                member.uid = member.gid = 0
            member.uname = member.gname = ""  # of this machine
            if member.isreg():
                yield from _file(path, member)
            else:
                yield _head(member)
            if member.isdir():
                waiting += [(f"{path}/{each}", f"{inside}/{each}") for each in sorted(os.listdir(path), reverse=True)]
    except OSError as error:
        raise InvalidValue(f"cannot read {error.filename or source}: {error.strerror}") from error
    yield bytes(2 * _BLOCK)


def _is_pipe(member: tarfile.TarInfo) -> bool:
    return member.type == tarfile.FIFOTYPE


def _head(member: tarfile.TarInfo) -> bytes:
    return member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _file(path: str, member: tarfile.TarInfo) -> Iterator[bytes]:
    """One that grows or shrinks meanwhile still fills exactly the size that its header says."""
    with open(path, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise InvalidValue(f"{path} has become something else")
        left, head = member.size, _head(member)
        while left:
            data = file.read(min(CHUNK_BYTES - len(head), left)) or bytes(min(CHUNK_BYTES - len(head), left))
            left -= len(data)
            yield head + data if head else data
            head = b""
    if rest := head + bytes(-member.size % _BLOCK):
        yield rest
