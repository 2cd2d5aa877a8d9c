"""A tar stream of a sandbox, written to this machine. A sandbox is not trusted: nothing lands outside of the target."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

from perdure.errors import InvalidValue

CHUNK_BYTES = 1 << 20
_HOLE_BYTES = 64 << 10  # that many zeros, or more, are not written
_ZEROS = bytes(CHUNK_BYTES)


def extract(pieces: Iterator[bytes], folder: str, name: str, *, keep_owner: bool) -> int:
    """Below ``folder``, the first part of each name replaced by ``name``; the bytes that came."""
    source, root = _Pieces(pieces), Path(folder)
    folders: list[tuple[Path, tarfile.TarInfo]] = []
    try:
        with tarfile.open(fileobj=io.BufferedReader(source, CHUNK_BYTES), mode="r|", bufsize=CHUNK_BYTES) as tar:
            for member in tar:
                path = _path_of(member.name, root, name)
                _make(tar, member, path, root, name)
                if member.isdir():
                    if path != root:  # that one was here before
                        folders.append((path, member))
                elif not member.islnk():
                    _finish(path, member, keep_owner=keep_owner)
        for path, member in reversed(folders):  # last: files are made in them, whatever their mode
            _finish(path, member, keep_owner=keep_owner)
    except tarfile.TarError as error:
        raise InvalidValue(f"the sandbox sent no tar stream: {error}") from error
    except OSError as error:
        raise InvalidValue(f"{error.filename or folder}: {error.strerror}") from error
    return source.count


class _Pieces(io.RawIOBase):
    """An iterator of bytes as a file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")
        self.count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        if not self._rest:
            self._rest = memoryview(next(self._pieces, b""))
            self.count += len(self._rest)
        count = min(len(view), len(self._rest))
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def _path_of(inside: str, folder: Path, name: str) -> Path:
    parts = inside.split("/")
    if ".." in parts or inside.startswith("/"):
        raise InvalidValue(f"the sandbox sent a file outside of what was asked for: {inside!r}")
    path = folder.joinpath(name, *parts[1:])
    if path != folder and not path.parent.resolve().is_relative_to(folder.resolve()):
        raise InvalidValue(f"the sandbox sent a file through a symbolic link: {inside!r}")
    return path


def _make(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path, folder: Path, name: str) -> None:
    """In the place of what is there; but never a folder for something else, nor the other way round."""
    there = path.lstat() if os.path.lexists(path) else None
    if there is not None and member.isdir() and path.is_symlink():
        raise InvalidValue(f"the sandbox sent a folder through a symbolic link: {member.name!r}")
    if there is not None and stat.S_ISDIR(there.st_mode) != member.isdir():
        what = "a folder" if member.isdir() else "no folder"
        raise InvalidValue(f"cannot overwrite {path}: in the sandbox it is {what}, here it is the opposite")
    if member.isdir():
        path.mkdir(exist_ok=True)
        if path != folder:
            path.chmod(0o700)  # until all is in it
        return
    if there is not None:
        path.unlink()
    if member.issym():
        path.symlink_to(member.linkname)
    elif member.islnk():
        first = _path_of(member.linkname, folder, name)
        os.link(first, path, follow_symlinks=False)
    elif member.type == tarfile.FIFOTYPE:
        os.mkfifo(path)
    elif member.isfile() and (source := tar.extractfile(member)) is not None:
        with path.open("xb", buffering=0) as file:
            while data := source.read(CHUNK_BYTES):
                if len(data) >= _HOLE_BYTES and data == _ZEROS[: len(data)]:
                    file.seek(len(data), os.SEEK_CUR)
                else:
                    _write(file, data)
            file.truncate(member.size)


def _write(file: io.FileIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _finish(path: Path, member: tarfile.TarInfo, *, keep_owner: bool) -> None:
    """Owner, mode, time. Without its owner a file does not get the right to run as that."""
    if keep_owner:
        with contextlib.suppress(PermissionError):  # as docker: who is not root keeps what it is given
            os.chown(path, member.uid, member.gid, follow_symlinks=False)
    if not member.issym():
        path.chmod(stat.S_IMODE(member.mode) & (0o7777 if keep_owner else 0o1777))
    os.utime(path, ns=(int(member.mtime * 1e9),) * 2, follow_symlinks=False)
