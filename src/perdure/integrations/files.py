"""Single files of a sandbox, as bytes. Paths are absolute; links are followed. One that sleeps is woken."""

from __future__ import annotations

import io
import posixpath
import stat
import tarfile
import time
from typing import TYPE_CHECKING

from perdure.errors import InvalidValue, NotFound
from perdure.integrations import archives

if TYPE_CHECKING:
    from perdure.client.node import NodeClient

LINKS_MAX = 40  # as Linux


def read(client: NodeClient, ref: str, path: str, *, offset: int = 0, limit: int | None = None) -> tuple[bytes, int]:
    """(What is in the file from ``offset`` on, ``limit`` bytes at most; its whole size). NotFound; InvalidValue: it is
    no file."""
    place = resolved(client, ref, path)
    with archives.stream(client.get_archive(ref, place)) as tar:
        member = tar.next()
        content = tar.extractfile(member) if member is not None and member.isfile() else None
        if member is None or content is None:
            raise InvalidValue(f"{path} is no file", hint="List a folder with: ls -la PATH")
        left = min(offset, member.size)
        while left and (skipped := content.read(min(left, 1 << 20))):  # a stream cannot be wound
            left -= len(skipped)
        return content.read(-1 if limit is None else limit), member.size


def resolved(client: NodeClient, ref: str, path: str) -> str:
    """Where a path leads, links followed. NotFound, also of what a link names."""
    wanted = _absolute(path)
    for _ in range(LINKS_MAX):
        found = client.stat(ref, wanted, follow=False)
        if not stat.S_ISLNK(int(found["mode"])):
            return wanted
        wanted = posixpath.normpath(posixpath.join(posixpath.dirname(wanted), str(found["link"])))
    raise InvalidValue(f"{path}: too many symbolic links")


def write(client: NodeClient, ref: str, path: str, content: bytes, *, mode: int | None = None) -> None:
    """Write a file whole, root's; folders that are missing are made. mode: permission bits; None: those that it has,
    or 644."""
    place = _absolute(path)
    try:
        place = resolved(client, ref, place)
        found = int(client.stat(ref, place)["mode"])
        if stat.S_ISDIR(found):
            raise InvalidValue(f"{path} is a folder", hint="Name a file in it.")
        mode = stat.S_IMODE(found) if mode is None else mode
    except NotFound:
        client.get(ref)  # or is it the sandbox that is not there?
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar:
        member = tarfile.TarInfo(place.lstrip("/"))
        member.size, member.mode, member.mtime = len(content), 0o644 if mode is None else mode, int(time.time())
        tar.addfile(member, io.BytesIO(content))
    client.put_archive(ref, "/", packed.getvalue())


def _absolute(path: str) -> str:
    if not path.startswith("/") or "\0" in path:
        raise InvalidValue(f"{path!r} is no absolute path", hint="Write it from / on.")
    return posixpath.normpath(path)
