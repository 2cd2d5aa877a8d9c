"""What an image has at a path, read from its disk without mounting it (unsquashfs(1))."""

from __future__ import annotations

import os
import posixpath
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from perdure.errors import InvalidValue, NotFound, Unavailable, Unsupported

LINKS_MAX = 40  # as Linux
_KINDS = {"-": stat.S_IFREG, "d": stat.S_IFDIR, "l": stat.S_IFLNK, "p": stat.S_IFIFO, "s": stat.S_IFSOCK}
_KINDS |= {"c": stat.S_IFCHR, "b": stat.S_IFBLK}


@dataclass(frozen=True)
class Entry:
    mode: int  # st_mode
    link: str = ""  # target of a symbolic link


def find(squashfs: Path, path: str, *, follow: bool = True) -> Entry:
    """The entry at an absolute path; links on the way are followed, the last one with ``follow``. Blocking, for some
    milliseconds. Raises NotFound, InvalidValue (a loop, a file on the way), Unsupported (no unsquashfs)."""
    wanted = posixpath.normpath("/" + path.lstrip("/"))
    for _ in range(LINKS_MAX):
        found = _listed(squashfs, wanted)
        for at, entry in found.items():
            if stat.S_ISLNK(entry.mode) and (at != wanted or follow):
                rest = wanted[len(at) :]
                wanted = posixpath.normpath(posixpath.join(posixpath.dirname(at), entry.link) + rest)
                break
        else:
            if wanted in found:
                return found[wanted]
            raise NotFound(f"{path}: No such file or directory")
    raise InvalidValue(f"{path}: too many symbolic links")


def _listed(squashfs: Path, path: str) -> dict[str, Entry]:
    """Those of the path's parts that are there, the root first."""
    depth = len([part for part in path.split("/") if part])
    argv = ["unsquashfs", "-no-wildcards", "-max-depth", str(depth), "-d", "", "-lln", str(squashfs)]
    try:
        done = subprocess.run([*argv, *([path.lstrip("/")] if depth else [])], capture_output=True)
    except FileNotFoundError:
        raise Unsupported("unsquashfs is not installed", hint="Install the package squashfs-tools.") from None
    found: dict[str, Entry] = {}
    for line in os.fsdecode(done.stdout).split("\n"):
        words = line.split(maxsplit=4)
        if len(words) == 5 and len(words[0]) == 10 and words[0][0] in _KINDS:
            name, _, link = (words[4].partition(" ")[2]).partition(" -> ")
            found[name or "/"] = Entry(_mode(words[0]), link)
    if not found:
        raise Unavailable(f"the image {squashfs} does not read: {os.fsdecode(done.stderr).strip()[-200:]}")
    return found


def _mode(text: str) -> int:
    """st_mode of what ls(1) writes."""
    bits = 0
    for place, letter in enumerate(text[1:]):
        if letter != "-" and letter not in ("S", "T"):
            bits |= 1 << (8 - place)
    for place, bit in ((3, stat.S_ISUID), (6, stat.S_ISGID), (9, stat.S_ISVTX)):
        if text[place] in "sStT":
            bits |= bit
    return _KINDS[text[0]] | bits
