"""What ``fcrun cp`` does, by the rules of ``docker cp``: where a copy lands depends on what is there already."""

from __future__ import annotations

import os
import posixpath
import stat
import sys
from collections.abc import Iterator
from typing import NamedTuple

from perdure.cli.fcrun import _extracting, _packing
from perdure.client.node import NodeClient
from perdure.errors import InvalidValue, NotFound

CHUNK_BYTES = 1 << 20
LINKS_MAX = 40  # as Linux


class Place(NamedTuple):
    sandbox: str | None
    path: str


class There(NamedTuple):
    """What is at the target of a copy, links followed: ``is_folder`` is None where nothing is."""

    path: str
    is_folder: bool | None


def place(text: str) -> Place:
    """``SANDBOX:PATH``, or a path here (one with a slash before its first colon is always here)."""
    sandbox, colon, path = text.partition(":")
    if not colon or "/" in sandbox or sandbox in ("", ".", ".."):
        return Place(None, text)
    return Place(sandbox, path if path.startswith("/") else "/" + path)


def into(client: NodeClient, source: str, ref: str, target: str, *, follow: bool, keep_owner: bool) -> int:
    """Copy a file or tree of this machine (``-``: a tar from stdin) into a sandbox, as root's or with its owners; the
    bytes that were sent."""
    if source == "-":
        there = _there(client, ref, target)
        if not there.is_folder:
            raise InvalidValue(f'destination "{ref}:{target}" must be a directory')
        return _counted(client, ref, there.path, iter(lambda: sys.stdin.buffer.read(CHUNK_BYTES), b""))
    try:
        # as it is written: a slash at its end means a folder, and follows a link
        is_folder = stat.S_ISDIR((os.stat if follow else os.lstat)(source).st_mode)
    except (OSError, ValueError) as error:
        raise InvalidValue(f"{source}: {getattr(error, 'strerror', error)}") from error
    folder, name = _landing(_there(client, ref, target), source, target, is_folder=is_folder)
    packed = _packing.packed(source, name or ".", follow=follow, keep_owner=keep_owner)
    return _counted(client, ref, folder, packed)


def _counted(client: NodeClient, ref: str, folder: str, pieces: Iterator[bytes]) -> int:
    sent = 0

    def counted() -> Iterator[bytes]:
        nonlocal sent
        for piece in pieces:
            sent += len(piece)
            yield piece

    client.put_archive(ref, folder, counted())
    return sent


def _there(client: NodeClient, ref: str, path: str) -> There:
    """In a sandbox."""
    wanted = path
    for _ in range(LINKS_MAX):
        try:
            found = client.stat(ref, wanted, follow=wanted.endswith("/"))
        except NotFound:
            client.get(ref)  # or is it the sandbox that does not exist?
            return There(wanted, None)
        mode = int(found["mode"])
        if not stat.S_ISLNK(mode):
            return There(wanted, _is_folder(f"{ref}:{path}", mode))
        wanted = _led(wanted, str(found["link"]))
    raise InvalidValue(f"{ref}:{path}: too many symbolic links")


def _led(path: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(path.rstrip("/")), link))


def _there_here(path: str) -> There:
    """On this machine."""
    wanted = os.path.realpath(path) if os.path.islink(path.rstrip("/")) else path  # a slash at its end counts
    try:
        return There(wanted, _is_folder(path, os.stat(wanted).st_mode))
    except (FileNotFoundError, NotADirectoryError):
        return There(wanted, None)


def _is_folder(path: str, mode: int) -> bool:
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise InvalidValue(f"{path}: destination must be a directory or a regular file")
    return stat.S_ISDIR(mode)


def _landing(there: There, source: str, target: str, *, is_folder: bool) -> tuple[str, str]:
    """(the existing folder to unpack in, the name to unpack as; empty: the source's own content)."""
    asserts_folder = target.endswith(("/", "/.")) or target in (".", "..")
    if there.is_folder:
        contents = is_folder and (source.endswith("/.") or posixpath.normpath(source) in (".", "/"))
        return there.path, "" if contents else _last_part(source)
    if there.is_folder is False and is_folder:
        raise InvalidValue(f"cannot copy directory {source}: {target} is there and is no folder")
    if asserts_folder and not is_folder:
        raise InvalidValue(f"{target}: there is no such folder")
    parent, _, name = there.path.rstrip("/").removesuffix("/.").rpartition("/")
    return parent or ("/" if there.path.startswith("/") else "."), name


def _last_part(path: str) -> str:
    """The name that a copy has in a folder: of ``..`` that of the folder which it means."""
    name = path.rstrip("/").removesuffix("/.").rpartition("/")[2]
    if name in ("", ".", ".."):
        name = os.path.basename(os.path.realpath(path))
    return name or "root"


def out_of(client: NodeClient, ref: str, source: str, target: str, *, follow: bool, keep_owner: bool = False) -> int:
    """Copy a file or tree out of a sandbox (to ``-``: as a tar to stdout). The copy is the caller's, or its owners'
    where that is wished for; the bytes that came."""
    asserts_folder = source.endswith(("/", "/."))
    wanted = source.removesuffix("/.").rstrip("/") or "/"
    mode = int((found := client.stat(ref, wanted, follow=False))["mode"])
    for _ in range(LINKS_MAX):
        if not (follow or asserts_folder) or not stat.S_ISLNK(mode):
            break
        wanted = _led(wanted, str(found["link"]))
        mode = int((found := client.stat(ref, wanted, follow=False))["mode"])
    else:
        raise InvalidValue(f"{ref}:{source}: too many symbolic links")
    is_folder = stat.S_ISDIR(mode)
    if asserts_folder and not is_folder:
        raise InvalidValue(f"{ref}:{source} is no folder")
    if target == "-":
        return _to_stdout(client.get_archive(ref, wanted))
    there = _there_here(target)
    folder, name = _landing(there, source, target, is_folder=is_folder)
    if not os.path.isdir(folder):
        raise InvalidValue(f"{folder}: there is no such folder")
    pieces = client.get_archive(ref, wanted)
    return _extracting.extract(pieces, folder, name, keep_owner=keep_owner)


def _to_stdout(pieces: Iterator[bytes]) -> int:
    if sys.stdout.isatty():
        raise InvalidValue("stdout is a terminal", hint="Send the tar stream to a file or a pipe.")
    count = 0
    for data in pieces:
        sys.stdout.buffer.write(data)
        count += len(data)
    sys.stdout.buffer.flush()
    return count
