"""What ``fcrun cp`` does, by the rules of ``docker cp``: where a copy lands depends on what is there already."""

from __future__ import annotations

import io
import os
import posixpath
import stat
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from perdure.client.node import NodeClient
from perdure.errors import InvalidValue, NotFound

CHUNK_BYTES = 1 << 17
LINKS_MAX = 40  # as Linux


class Place(NamedTuple):
    sandbox: str | None
    path: str


def place(text: str) -> Place:
    """``SANDBOX:PATH``, or a path here (one with a slash before its first colon is always here)."""
    sandbox, colon, path = text.partition(":")
    if not colon or "/" in sandbox or sandbox in ("", ".", ".."):
        return Place(None, text)
    return Place(sandbox, path if path.startswith("/") else "/" + path)


def into(client: NodeClient, source: str, ref: str, target: str, *, follow: bool, keep_owner: bool) -> None:
    """Copy a file or tree of this machine (``-``: a tar from stdin) into a sandbox, as root's or with its owners."""
    if source == "-":
        client.put_archive(ref, target, iter(lambda: sys.stdin.buffer.read(CHUNK_BYTES), b""))
        return
    path = Path(source)
    try:
        is_folder = stat.S_ISDIR((path.stat() if follow else path.lstat()).st_mode)
    except OSError as error:
        raise InvalidValue(f"{source}: {error.strerror}") from error
    folder, name = _landing(_is_folder_there(client, ref, target), source, target, is_folder=is_folder)

    def member(found: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if not (found.isfile() or found.isdir() or found.issym() or found.islnk()):
            sys.stderr.write(f"fcrun: {found.name} is a pipe or a device, and is left out\n")
            return None
        if not keep_owner:
            found.uid = found.gid = 0
            found.uname = found.gname = ""
        return found

    def write(pipe: IO[bytes]) -> None:
        with tarfile.open(fileobj=pipe, mode="w|", format=tarfile.PAX_FORMAT, dereference=False) as tar:
            tar.add(path.resolve() if follow else path, arcname=name or ".", filter=member)

    client.put_archive(ref, folder, _piped(write))


def _is_folder_there(client: NodeClient, ref: str, path: str) -> bool | None:
    """Whether the sandbox has a folder there; None: nothing."""
    try:
        return stat.S_ISDIR(int(client.stat(ref, path)["mode"]))
    except NotFound:
        client.get(ref)  # or is it the sandbox that does not exist?
        return None


def _landing(folder_there: bool | None, source: str, target: str, *, is_folder: bool) -> tuple[str, str]:
    """(the existing folder to unpack in, the name to unpack as; empty: the source's own content)."""
    contents = source.endswith("/.") or source == "."
    if folder_there:
        return target, "" if contents else _last_part(source)
    if folder_there is False and (is_folder or target.endswith("/")):
        raise InvalidValue(f"{target} is there and is no folder")
    if folder_there is None and target.endswith("/") and not is_folder:
        raise InvalidValue(f"{target}: there is no such folder")
    parent, _, name = target.rstrip("/").rpartition("/")
    return parent or ("/" if target.startswith("/") else "."), name


def _last_part(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2] or "root"


def _piped(write: object) -> Iterator[bytes]:
    """What ``write(pipe)`` writes in a thread of its own, as it comes."""
    reading, writing = os.pipe()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with os.fdopen(writing, "wb") as pipe:
                write(pipe)  # type: ignore[operator]
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    with os.fdopen(reading, "rb") as pipe:
        while data := pipe.read(CHUNK_BYTES):
            yield data
    thread.join()
    if failures:
        raise InvalidValue(f"cannot read what is to be copied: {failures[0]}")


def out_of(client: NodeClient, ref: str, source: str, target: str, *, follow: bool) -> None:
    """Copy a file or tree out of a sandbox (to ``-``: as a tar to stdout). The copy is the caller's."""
    wanted, links = source, 0
    while follow and stat.S_ISLNK(int((found := client.stat(ref, wanted, follow=False))["mode"])):
        if (links := links + 1) > LINKS_MAX:
            raise InvalidValue(f"{source}: too many symbolic links")
        wanted = posixpath.normpath(posixpath.join(posixpath.dirname(wanted.rstrip("/")), found["link"]))
    pieces = client.get_archive(ref, wanted.removesuffix("/.") or "/")
    if target == "-":
        if sys.stdout.isatty():
            raise InvalidValue("stdout is a terminal", hint="Send the tar stream to a file or a pipe.")
        for data in pieces:
            sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    there = Path(target).is_dir() if Path(target).exists() else None
    is_folder = stat.S_ISDIR(int(client.stat(ref, wanted, follow=wanted.endswith("/."))["mode"]))
    folder, name = _landing(there, source, target, is_folder=is_folder)
    if not Path(folder).is_dir():
        raise InvalidValue(f"{folder}: there is no such folder")
    with tarfile.open(fileobj=io.BufferedReader(_Pieces(pieces)), mode="r|") as tar:
        for member in tar:
            _extract(tar, member, Path(folder), name)


class _Pieces(io.RawIOBase):
    """An iterator of bytes as a file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        if not self._rest:
            self._rest = next(self._pieces, b"")
        count = min(len(view), len(self._rest))
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, name: str) -> None:
    """One member below ``folder``, its first part replaced by ``name``.

    A sandbox is not trusted: nothing lands outside.
    """
    parts = member.name.split("/")
    if ".." in parts or member.name.startswith("/"):
        raise InvalidValue(f"the sandbox sent a file outside of what was asked for: {member.name!r}")
    path = folder.joinpath(name, *parts[1:])
    inside = folder.resolve()
    if path != folder and not path.parent.resolve().is_relative_to(inside):
        raise InvalidValue(f"the sandbox sent a file through a symbolic link: {member.name!r}")
    mode = stat.S_IMODE(member.mode) & 0o777 | stat.S_IWUSR
    if member.isdir():
        if path != folder and path.is_symlink():  # its mode would be set on what the link points to
            raise InvalidValue(f"the sandbox sent a folder through a symbolic link: {member.name!r}")
        path.mkdir(exist_ok=True)
        if path != folder:  # that one was here before
            path.chmod(mode)
    elif member.issym():
        path.unlink(missing_ok=True)
        path.symlink_to(member.linkname)
    elif member.isfile() and (source := tar.extractfile(member)) is not None:
        if path.is_symlink():
            path.unlink()
        with path.open("wb") as file:
            while data := source.read(CHUNK_BYTES):
                file.write(data)
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # not of /dev/null, say
                os.fchmod(file.fileno(), mode)
