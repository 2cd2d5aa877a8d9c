"""The file tree that layers make when they are applied in order, kept as headers only.

    for each layer: for each member: tree.apply(layer index, member ordinal, header)

Rules are those of the OCI image specification (layer.md) and of containerd where the specification is silent:
- ``.wh.NAME`` removes NAME as lower layers made it; ``.wh..wh..opq`` does so with all of its folder. What the same
  layer adds stays, wherever in the layer the whiteout stands.
- A folder over a folder changes its attributes; any other meeting replaces what was there.
- Parents that are symbolic links are followed inside the root, which ``..`` and ``/`` never leave: so a member can be
  written through a link, but not out of the image. Missing parents are made, root's, mode 0755.
- Devices in ``/dev`` are left out, as the guest's own ``/dev`` hides that folder; elsewhere they are refused.
- A hard link is a second node with the same ``source``: its target must already be there.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

from perdure.errors import ImageInvalid

NAME_MAX = 255  # bytes of one path component (limits.h)
LINK_MAX = 4095  # bytes of a symbolic link's target (PATH_MAX less its NUL)
DEPTH_MAX = 512  # folders in folders: deeper than any PATH_MAX can spell usefully, and no recursion here hurts
FOLLOW_MAX = 40  # symbolic links on one path (path_resolution(7))
FILE_MAX = 1 << 40  # apparent bytes of one file: its block list in a squashfs costs 4 bytes per 128 KiB, holes too
_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"


def extents(header: tarfile.TarInfo) -> list[tuple[int, int]]:
    """(offset, length) of what is stored of a regular file, in ascending order; the rest are holes."""
    stored = cast("Sequence[tuple[int, int]] | None", header.sparse)  # typeshed has it as plain ints
    return [(0, header.size)] if stored is None else [extent for extent in stored if extent[1]]


def stored_bytes(header: tarfile.TarInfo) -> int:
    return sum(length for _, length in extents(header))


@dataclass
class Node:
    """One name in a folder. ``layer`` put it there; nodes with the same ``source`` are one file with several names."""

    header: tarfile.TarInfo
    layer: int
    source: tuple[int, int] | None = None  # (layer, member ordinal) that made what is no folder
    machine: int | None = None  # of an executable ELF file: its e_machine (elf(5))
    children: dict[str, Node] = field(default_factory=dict)

    @property
    def is_folder(self) -> bool:
        return self.header.isdir()


def _folder(layer: int) -> Node:
    header = tarfile.TarInfo()
    header.type = tarfile.DIRTYPE
    header.mode = 0o755
    return Node(header, layer)


class Tree:
    """The merged tree. ``relative_only``: absolute member names are refused instead of taken as below the root."""

    def __init__(self, *, relative_only: bool = False) -> None:
        self.root = _folder(-1)
        self._relative_only = relative_only
        self._layer = -1

    def apply(self, layer: int, ordinal: int, header: tarfile.TarInfo) -> Node | None:
        """Apply one member; return the node of a new file, folder or link. Raises ImageInvalid, naming it."""
        self._layer = layer
        name = header.name
        parts = self._parts(name, name)
        is_device = header.ischr() or header.isblk()
        if is_device and parts[:1] != ["dev"]:
            raise ImageInvalid(
                f"{name} is a device",
                hint="Images carry none but in /dev, where a microVM makes its own: tar --exclude leaves it out.",
            )
        if not parts:
            if not header.isdir():
                raise ImageInvalid(f"{name!r} stands for the root, but is no folder", hint=_HINT)
            self.root.header = header
            return None
        parent = self._walk(parts[:-1], name)
        leaf = parts[-1]
        if leaf.startswith(_WHITEOUT):
            self._whiteout(parent, leaf, name)
            return None
        if is_device:  # the guest's own /dev hides all of the image's
            parent.children.pop(leaf, None)
            return None
        if header.islnk():
            target = self._link_target(header)
            self._put(parent, leaf, Node(target.header, layer, target.source, target.machine), replaces=True)
            return None
        node = Node(header, layer, None if header.isdir() else (layer, ordinal))
        if header.isreg():
            self._check_extents(header)
        elif header.issym():
            if not 0 < len(header.linkname.encode("utf-8", "surrogateescape")) <= LINK_MAX:
                raise ImageInvalid(f"{name}: the link's target is empty or too long", hint=_HINT)
        elif not (header.isdir() or header.isfifo()):
            raise ImageInvalid(f"{name}: a member of the unknown kind {header.type!r}", hint=_HINT)
        return self._put(parent, leaf, node, replaces=not header.isdir())

    def walk(self) -> Iterator[tuple[str, Node]]:
        """Every path (relative, no slash in front) with its node, sorted, folders before what is in them."""
        stack = [("", self.root)]
        while stack:
            path, node = stack.pop()
            if path:
                yield path, node
            for name in sorted(node.children, reverse=True):
                stack.append((f"{path}/{name}" if path else name, node.children[name]))

    def _parts(self, path: str, member: str) -> list[str]:
        """The components of a name in the archive, checked."""
        if path.startswith("/") and self._relative_only:
            raise ImageInvalid(
                f"{member}: the absolute name {path}",
                hint="Pack a root file system with relative names: tar -C ROOT -c . > root.tar",
            )
        parts = [part for part in path.split("/") if part not in ("", ".")]
        for part in parts:
            if part == "..":
                raise ImageInvalid(f"{member}: the name {path} has '..' in it", hint=_HINT)
            if len(part.encode("utf-8", "surrogateescape")) > NAME_MAX or "\0" in part:
                raise ImageInvalid(f"{member[:80]}…: no file system can hold this name", hint=_HINT)
        if len(parts) > DEPTH_MAX:
            raise ImageInvalid(f"{member[:80]}…: more than {DEPTH_MAX} folders deep", hint=_HINT)
        return parts

    def _walk(self, parts: list[str], member: str, *, make: bool = True) -> Node:
        """The folder at a path, links followed inside the root; missing folders are made."""
        trail = [self.root]
        todo = list(reversed(parts))
        followed = 0
        while todo:
            part = todo.pop()
            if part in ("", "."):
                continue
            if part == "..":
                if len(trail) > 1:
                    trail.pop()
                continue
            child = trail[-1].children.get(part)
            if child is None:
                if not make:
                    raise ImageInvalid(f"{member}: nothing is at its target", hint=_HINT)
                if len(trail) > DEPTH_MAX or len(part.encode("utf-8", "surrogateescape")) > NAME_MAX:
                    raise ImageInvalid(f"{member}: its folder cannot be made", hint=_HINT)
                child = self._put(trail[-1], part, _folder(self._layer), replaces=True)
            if child.header.issym():
                followed += 1
                if followed > FOLLOW_MAX:
                    raise ImageInvalid(f"{member}: too many symbolic links on its path", hint=_HINT)
                target = child.header.linkname
                if target.startswith("/"):
                    trail = [self.root]
                todo.extend(reversed(target.split("/")))
                continue
            if not child.is_folder:
                raise ImageInvalid(f"{member}: {part} on its path is not a folder", hint=_HINT)
            trail.append(child)
        return trail[-1]

    def _put(self, parent: Node, leaf: str, node: Node, *, replaces: bool) -> Node:
        old = parent.children.get(leaf)
        if old is not None and old.is_folder and not replaces:
            old.header, old.layer = node.header, node.layer
            return old
        parent.children[leaf] = node
        return node

    def _link_target(self, header: tarfile.TarInfo) -> Node:
        parts = self._parts(header.linkname, header.name)
        folder = self._walk(parts[:-1], header.name, make=False) if parts else self.root
        target = folder.children.get(parts[-1]) if parts else self.root
        if target is None:
            raise ImageInvalid(f"{header.name}: hard link to {header.linkname}, which is not there", hint=_HINT)
        if target.is_folder:
            raise ImageInvalid(f"{header.name}: hard link to {header.linkname}, which is a folder", hint=_HINT)
        return target

    def _whiteout(self, parent: Node, leaf: str, member: str) -> None:
        if leaf == _OPAQUE:
            self._drop_lower(parent)
            return
        if leaf.startswith(".wh..wh."):
            return  # bookkeeping of AUFS, which no reader applies
        victim = leaf.removeprefix(_WHITEOUT)
        if victim in ("", ".", ".."):
            raise ImageInvalid(f"{member}: a whiteout of nothing", hint=_HINT)
        node = parent.children.get(victim)
        if node is not None and not self._drop_lower(node) and node.layer < self._layer:
            del parent.children[victim]

    def _drop_lower(self, top: Node) -> bool:
        """Drop what is below ``top`` and came from lower layers; say whether anything is left below it."""
        order = [top]
        for node in order:
            order.extend(child for child in node.children.values() if child.is_folder)
        for node in reversed(order):  # deepest first, so that an emptied folder can go too
            node.children = {
                name: child for name, child in node.children.items() if child.layer == self._layer or child.children
            }
        return bool(top.children)

    @staticmethod
    def _check_extents(header: tarfile.TarInfo) -> None:
        if not 0 <= header.size <= FILE_MAX:
            raise ImageInvalid(f"{header.name}: claims a size of {header.size} bytes", hint=_HINT)
        end = 0
        for offset, length in extents(header):
            if offset < end or length < 0 or offset + length > header.size:
                raise ImageInvalid(f"{header.name}: its map of holes contradicts itself", hint=_HINT)
            end = offset + length


_HINT = "The archive is not a clean image: repack it from a root file system you trust."
