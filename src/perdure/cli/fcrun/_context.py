"""The context of a build as a tar stream: a folder without what its ``.dockerignore`` names, or what comes on stdin."""

from __future__ import annotations

import io
import os
import re
import stat
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from perdure.errors import InvalidValue

CHUNK_BYTES = 1 << 18
OUTSIDE = ".fcrun-dockerfile"  # the name in the context of a Dockerfile that is not in the folder
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")


@dataclass(frozen=True)
class Context:
    dockerfile: str  # its name in the context
    chunks: Iterator[bytes]


def of(place: str, dockerfile: str) -> Context:
    """``place``: a folder, or ``-``: a tar or a Dockerfile on stdin. ``dockerfile``: as ``-f`` has it, or nothing.

    Raises InvalidValue.
    """
    if place == "-":
        if dockerfile == "-":
            raise InvalidValue("stdin cannot be both the Dockerfile and the context")
        return _stdin(dockerfile)
    if "://" in place or place.startswith("git@"):
        raise InvalidValue(f"{place}: contexts are folders and tars here", hint="Clone or download it first.")
    if not os.path.isdir(place):
        raise InvalidValue(f"the context {place} is not a folder", hint="fcrun build FOLDER, or - for a tar on stdin.")
    text = None
    if dockerfile == "-":
        name, text = OUTSIDE, _from_stdin()
    else:
        name = _within(place, dockerfile or os.path.join(place, "Dockerfile"))
        if not name:
            name, text = OUTSIDE, _read(dockerfile)
        elif not os.path.isfile(os.path.join(place, name)):
            raise InvalidValue(f"there is no Dockerfile {os.path.join(place, name)}", hint="Name it: -f FILE")
    rules, own_rules = _ignore_file(place, name if text is None else "")
    added = ({} if text is None else {name: text}) | ({".dockerignore": own_rules} if own_rules is not None else {})
    return Context(name, _packed(place, ignored_by(rules), added, keep={name, ".dockerignore"}))


def _stdin(dockerfile: str) -> Context:
    head = _terminal_refused().read(tarfile.BLOCKSIZE)
    if head.startswith(_COMPRESSED) or head[257:262] == b"ustar":
        rest = iter(lambda: sys.stdin.buffer.read(CHUNK_BYTES), b"")
        return Context(dockerfile or "Dockerfile", _chained(head, rest))
    if dockerfile:
        raise InvalidValue("-f names a file of the context, and on stdin is no tar")
    text = head + sys.stdin.buffer.read()
    if not text.strip():
        raise InvalidValue("nothing came on stdin", hint="Pipe a Dockerfile or a tar in.")
    return Context("Dockerfile", iter([_member("Dockerfile", text) + bytes(2 * tarfile.BLOCKSIZE)]))


def _chained(head: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield head
    yield from rest


def _terminal_refused() -> io.BufferedReader:
    if sys.stdin.isatty():
        raise InvalidValue("stdin is a terminal", hint="Pipe a Dockerfile or a tar in.")
    return sys.stdin.buffer  # type: ignore[return-value]  # typeshed has it as BinaryIO


def _from_stdin() -> bytes:
    return _terminal_refused().read()


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise InvalidValue(f"-f {path}: {error.strerror}") from error


def _within(folder: str, path: str) -> str:
    """The path relative to the folder; empty where it is outside."""
    name = os.path.relpath(os.path.realpath(path), os.path.realpath(folder))
    return "" if name == ".." or name.startswith("../") else name


def _ignore_file(folder: str, dockerfile: str) -> tuple[str, bytes | None]:
    """The rules; and their bytes where they are the Dockerfile's own, and so must stand as ``.dockerignore``."""
    for name in ([f"{dockerfile}.dockerignore"] if dockerfile else []) + [".dockerignore"]:
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            text = _read(path)
            return text.decode(errors="replace"), None if name == ".dockerignore" else text
    return "", None


def ignored_by(rules: str) -> Callable[[str], bool]:
    """Whether a path (relative, no slash at its end) is left out: the last rule that fits it or a folder above it wins,
    and ``!`` brings it back."""
    patterns = []
    for line in rules.splitlines():
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        brings_back = text.startswith("!")
        text = os.path.normpath(text.removeprefix("!").strip()).lstrip("/")
        if text and text != ".":
            patterns.append((re.compile(_expression(text)), brings_back))

    def ignored(path: str) -> bool:
        found = False
        parts = path.split("/")
        above = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
        for pattern, brings_back in patterns:
            if any(pattern.fullmatch(one) for one in above):
                found = not brings_back
        return found

    return ignored


def _expression(pattern: str) -> str:
    """Go's ``filepath.Match`` with ``**``, as a regular expression."""
    found, at = "", 0
    while at < len(pattern):
        if pattern.startswith("**/", at):
            found, at = found + "(?:.*/)?", at + 3
        elif pattern.startswith("**", at):
            found, at = found + ".*", at + 2
        elif pattern[at] == "*":
            found, at = found + "[^/]*", at + 1
        elif pattern[at] == "?":
            found, at = found + "[^/]", at + 1
        elif pattern[at] == "[" and (end := pattern.find("]", at + 1)) > 0:
            inner = pattern[at + 1 : end].replace("\\", "\\\\")
            found, at = f"{found}[{inner}]", end + 1
        elif pattern[at] == "\\" and at + 1 < len(pattern):
            found, at = found + re.escape(pattern[at + 1]), at + 2
        else:
            found, at = found + re.escape(pattern[at]), at + 1
    return found


def _packed(folder: str, ignored: Callable[[str], bool], added: dict[str, bytes], keep: set[str]) -> Iterator[bytes]:
    """A folder that is left out is looked through all the same: a later rule may bring back what is in it."""
    for name, data in added.items():
        yield _member(name, data)
    inodes: dict[tuple[int, int], str] = {}
    for path, name in _walk(folder, ""):
        if name in added or (ignored(name) and name not in keep):
            continue
        try:
            yield from _entry(path, name, inodes)
        except OSError as error:
            raise InvalidValue(f"the context: {path}: {error.strerror}") from error
    yield bytes(2 * tarfile.BLOCKSIZE)


def _walk(folder: str, prefix: str) -> Iterator[tuple[str, str]]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise InvalidValue(f"the context: {folder}: {error.strerror}") from error
    for entry in entries:
        name = f"{prefix}{entry.name}"
        yield entry.path, name
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path, f"{name}/")


def _entry(path: str, name: str, inodes: dict[tuple[int, int], str]) -> Iterator[bytes]:
    info = os.lstat(path)
    header = tarfile.TarInfo(name)
    header.mode, header.mtime = stat.S_IMODE(info.st_mode), int(info.st_mtime)
    if stat.S_ISDIR(info.st_mode):
        header.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(info.st_mode):
        header.type, header.linkname = tarfile.SYMTYPE, os.readlink(path)
    elif stat.S_ISREG(info.st_mode):
        key = (info.st_dev, info.st_ino)
        if info.st_nlink > 1 and key in inodes:
            header.type, header.linkname = tarfile.LNKTYPE, inodes[key]
        else:
            inodes[key] = name
            header.size = info.st_size
    else:
        return  # sockets, pipes and devices are no content
    yield _tar_header(header)
    if header.type == tarfile.REGTYPE and header.size:
        yield from _content(path, header.size)


def _content(path: str, size_bytes: int) -> Iterator[bytes]:
    left = size_bytes
    with open(path, "rb") as file:
        while left and (data := file.read(min(CHUNK_BYTES, left))):
            left -= len(data)
            yield data
    if left:
        raise InvalidValue(f"the context: {path} became shorter while it was read")
    yield bytes(-size_bytes % tarfile.BLOCKSIZE)


def _member(name: str, data: bytes) -> bytes:
    header = tarfile.TarInfo(name)
    header.size = len(data)
    return _tar_header(header) + data + bytes(-len(data) % tarfile.BLOCKSIZE)


def _tar_header(header: tarfile.TarInfo) -> bytes:
    return header.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
