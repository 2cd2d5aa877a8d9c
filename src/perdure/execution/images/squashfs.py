"""A merged tree into a squashfs file, through one tar stream into ``mksquashfs -tar``: no file is ever unpacked here.

Folders come first, then links, then files in the order of the layers (so each layer is read once, forward), then
further names of files. Equal input gives equal bytes: mksquashfs is reproducible by default, and times that would be
now are fixed. Why lz4: docs/design/0008-images.md.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from perdure.errors import ImageInvalid, NoSpace, PerdureError, Unsupported
from perdure.execution.images.layers import Layer
from perdure.execution.images.tarmembers import Member, members
from perdure.execution.images.tree import Node, Tree, extents, stored_bytes

COMPRESSION = ("-comp", "lz4", "-b", "128K")
Progress = Callable[[str, int, int], None]

_ID_MAX = 0xFFFFFFFE  # (uid_t) -1 means "no id" to chown(2)
_TIME_MAX = 0xFFFFFFFF  # a squashfs holds unsigned 32-bit seconds
_XATTRS = ("user.", "trusted.", "security.")  # what a squashfs can hold
_OVERLAY = ("trusted.overlay.", "user.overlay.")  # these would speak to the guest's own overlay mount


def pack(tree: Tree, layers: Sequence[Layer], target: Path, progress: Progress | None = None) -> None:
    """Write ``tree`` with its files' data from ``layers`` to ``target`` (which must not exist), not synced.

    Raises Unsupported without ``mksquashfs``, NoSpace, ImageInvalid for what a squashfs cannot hold.
    """
    program = shutil.which("mksquashfs")
    if program is None:
        raise Unsupported(
            "mksquashfs is not installed", hint="Install squashfs-tools 4.5 or newer: make setup, or apt."
        )
    root = tree.root.header
    command = [program, "-", str(target), "-tar", *COMPRESSION, "-exit-on-error", "-no-progress", "-quiet"]
    command += ["-root-mode", f"{root.mode & 0o7777:o}", "-root-uid", str(_id(root.uid, "/"))]
    command += ["-root-gid", str(_id(root.gid, "/"))]
    # The root's own time would be now (-root-time has no effect with -tar in 4.5.1), but no time passes this limit.
    newest = max([_time(root), *(_time(node.header) for _, node in tree.walk())])
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(newest), "LC_ALL": "C"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment)
        assert process.stdin is not None
        try:
            with process.stdin as pipe:
                write_tar(tree, layers, pipe, progress)
        except BrokenPipeError:
            pass  # it gave up first: its own message says why
        except BaseException:
            process.kill()
            process.wait()
            raise
        status = process.wait()
        log.seek(0)
        said = log.read().decode(errors="replace").strip()
    if status != 0:
        raise _failure(status, said, target)


def _failure(status: int, said: str, target: Path) -> PerdureError:
    if "No space left" in said or "quota exceeded" in said:
        return NoSpace(f"no space in {target.parent} for the image", hint="Free some space, then try again.")
    return ImageInvalid(
        f"mksquashfs could not pack the image (status {status}): {said.splitlines()[-1] if said else 'no message'}",
        hint="The image holds something that a squashfs cannot, or memory ran out.",
        output=said[-4000:],
    )


def write_tar(tree: Tree, layers: Sequence[Layer], pipe: IO[bytes], progress: Progress | None = None) -> None:
    """``tree`` as one tar, with its files' data from ``layers``. Raises ImageInvalid."""
    names: dict[tuple[int, int], list[str]] = {}
    made: dict[tuple[int, int], Node] = {}
    for path, node in tree.walk():
        if node.source is None:
            pipe.write(_header(_copy(node.header, path)))
        else:
            names.setdefault(node.source, []).append(path)
            made[node.source] = node
    files = {source: node for source, node in made.items() if node.header.isreg()}
    for source, node in made.items():
        if source not in files:
            pipe.write(_header(_copy(node.header, names[source][0])))
    total = sum(stored_bytes(node.header) for node in files.values())
    done = 0
    for number, layer in enumerate(layers):
        wanted = {ordinal for at, ordinal in files if at == number}
        for ordinal, member in _survivors(layer, wanted):
            source = (number, ordinal)
            header = files[source].header
            if (member.header.name, member.header.size) != (header.name, header.size):
                raise ImageInvalid(f"{layer.name} changed while it was read", hint="Write the archive, then load it.")
            _write_file(member, names[source][0], pipe)
            done += stored_bytes(header)
            if progress is not None:
                progress("packing", done, total)
    for source, paths in names.items():
        for path in paths[1:]:
            link = _copy(made[source].header, path)
            link.type, link.linkname, link.size = tarfile.LNKTYPE, paths[0], 0
            pipe.write(_header(link))
    pipe.write(bytes(2 * tarfile.BLOCKSIZE))


def _survivors(layer: Layer, wanted: set[int]) -> Iterator[tuple[int, Member]]:
    """Read the layer again, up to the last member whose data is in the result."""
    if not wanted:
        return
    last = max(wanted)
    for ordinal, member in enumerate(members(layer.section.open(), layer.name, vouched=True)):
        if ordinal in wanted:
            yield ordinal, member
        if ordinal == last:
            return
    raise ImageInvalid(f"{layer.name} changed while it was read", hint="Write the archive, then load it.")


def _write_file(member: Member, path: str, pipe: IO[bytes]) -> None:
    header = _copy(member.header, path)
    header.type = tarfile.REGTYPE
    stored = extents(member.header)
    lead = b""
    if member.header.sparse is not None:  # holes stay holes: GNU sparse format 1.0, a map in front of the data
        # mksquashfs 4.5.1 calls a map of one extent corrupt, unless that has whole blocks: an empty one goes before it
        named = [(0, 0), *stored] if len(stored) == 1 else stored
        numbers = [len(named), *(number for extent in named for number in extent)]
        lead = _padded("".join(f"{number}\n" for number in numbers).encode())
        sparse = {"major": "1", "minor": "0", "name": path, "realsize": str(header.size)}
        header.pax_headers = {**header.pax_headers, **{f"GNU.sparse.{key}": value for key, value in sparse.items()}}
        header.size = len(lead) + sum(length for _, length in stored)
    pipe.write(_header(header))
    pipe.write(lead)
    for part in member.data(stored):
        pipe.write(part)
    pipe.write(bytes(-header.size % tarfile.BLOCKSIZE))


def _copy(header: tarfile.TarInfo, path: str) -> tarfile.TarInfo:
    """What the squashfs keeps of a header: names of users, fractions of seconds and foreign attributes go."""
    copy = tarfile.TarInfo(path)
    copy.type, copy.size = header.type, header.size if header.isreg() else 0
    copy.linkname = header.linkname if header.issym() else ""
    copy.mode = header.mode & 0o7777
    copy.uid, copy.gid = _id(header.uid, path), _id(header.gid, path)
    copy.mtime = _time(header)
    for key, value in header.pax_headers.items():
        prefix, _, name = key.partition(".xattr.")
        if prefix == "SCHILY" and name.startswith(_XATTRS) and not name.startswith(_OVERLAY):
            copy.pax_headers = {**copy.pax_headers, key: value}
    return copy


def _header(header: tarfile.TarInfo) -> bytes:
    return header.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % tarfile.BLOCKSIZE)


def _id(number: int, path: str) -> int:
    if not 0 <= number <= _ID_MAX:
        raise ImageInvalid(f"{path}: the owner id {number} is none", hint="Repack the archive with sane owners.")
    return number


def _time(header: tarfile.TarInfo) -> int:
    return int(max(0, min(header.mtime, _TIME_MAX)))
