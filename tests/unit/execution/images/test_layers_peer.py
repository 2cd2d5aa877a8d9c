"""Layers applied here and by ``umoci unpack``: random stacks of layers must give the same tree, inode by inode."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import shutil
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.errors import ImageInvalid
from perdure.execution.images.library import ImageLibrary
from perdure.execution.images.tree import Tree

from .conftest import ARCHITECTURE, elf, sha256

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="owners and capabilities are unpacked by root only"),
    pytest.mark.skipif(not (shutil.which("umoci") and shutil.which("unsquashfs")), reason="umoci is not installed"),
]

LONG_AGO = 1_600_000_000
NAMES = ["a", "b", "c", "ln", "it's", "n\udcff"]  # the last: not UTF-8
CAPABILITY = (b"\x01\x00\x00\x02\x00\x04\x00\x00" + bytes(12)).decode("utf-8", "surrogateescape")
PATHS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map("/".join)
MODES = st.sampled_from([0o644, 0o600, 0o755, 0o4755, 0o2755, 0o1777, 0o6711, 0o444])


@dataclass
class Entry:
    """One member of a layer, as it is drawn."""

    path: str
    kind: bytes
    data: bytes = b""
    fields: dict[str, Any] = field(default_factory=dict)

    def header(self) -> tarfile.TarInfo:
        header = tarfile.TarInfo(self.path)
        header.type, header.size = self.kind, len(self.data)
        for name, value in self.fields.items():
            setattr(header, name, value)
        return header


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    path, kind = draw(PATHS), draw(st.sampled_from("ffffdddslhhpwwo"))
    if kind in "wo":
        folder, _, leaf = f"./{path}".rpartition("/")
        name = f"{folder}/.wh.{leaf}" if kind == "w" else f"{path}/.wh..wh..opq"
        return Entry(name.removeprefix("./"), tarfile.REGTYPE)
    fields: dict[str, Any] = {
        "mode": draw(MODES),
        "uid": draw(st.sampled_from([0, 1, 1000, 65534, 3_000_000])),
        "gid": draw(st.sampled_from([0, 5, 1000, 3_000_000])),
        "mtime": draw(st.integers(0, LONG_AGO)),
    }
    if kind == "f":
        if draw(st.booleans()):
            fields["pax_headers"] = {"SCHILY.xattr.user.note": draw(st.sampled_from(["x", "é", "\udcff=\n"]))}
        if draw(st.booleans()):
            fields["pax_headers"] = {"SCHILY.xattr.security.capability": CAPABILITY}
        return Entry(path, tarfile.REGTYPE, draw(st.binary(max_size=40)), fields)
    if kind == "s":
        target = draw(st.sampled_from(["a", "../b", "/a/b", "../../../c", "nowhere", "."]))
        return Entry(path, tarfile.SYMTYPE, b"", fields | {"linkname": target, "mode": 0o777})
    if kind in "lh":
        return Entry(path, tarfile.LNKTYPE, b"", fields | {"linkname": draw(PATHS)})
    if kind == "p":
        return Entry(path, tarfile.FIFOTYPE, b"", fields)
    # not set-group-id: a folder that umoci must make in it inherits that from a file system, and none is there here
    return Entry(path, tarfile.DIRTYPE, b"", fields | {"mode": fields["mode"] & ~0o2000})


@st.composite
def stacks(draw: st.DrawFn) -> list[list[Entry]]:
    """Layers that can be applied: whiteouts first in each, as the specification asks for, no name twice."""
    tree, stack = Tree(), []
    for number in range(draw(st.integers(1, 4))):
        drawn = draw(st.lists(entries(), max_size=8, unique_by=lambda entry: entry.path))
        drawn.sort(key=lambda entry: ".wh." not in entry.path)
        layer = []
        for ordinal, entry in enumerate(drawn):
            if _is_common_ground(tree, entry) and (applied := _applied(tree, number, ordinal, entry)) is not None:
                tree = applied
                layer.append(entry)
        stack.append(layer)
    return stack


def _is_common_ground(tree: Tree, entry: Entry) -> bool:
    """Not where tools differ, and none of them writes such layers (docs/design/0008-images.md)."""
    folder = entry.path.rpartition("/")[0]
    if ".wh." in entry.path and folder:
        return any(path == folder and node.is_folder for path, node in tree.walk())
    if entry.kind == tarfile.LNKTYPE:
        return not f"{entry.fields['linkname']}/".startswith(f"{entry.path}/")
    return True


def _applied(tree: Tree, number: int, ordinal: int, entry: Entry) -> Tree | None:
    tree = copy.deepcopy(tree)  # what is refused half-way leaves the folders that it made
    try:
        tree.apply(number, ordinal, entry.header())
    except ImageInvalid:
        return None
    return tree


def _tar(layer: list[Entry]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT, errors="surrogateescape") as tar:
        for entry in layer:
            tar.addfile(entry.header(), io.BytesIO(entry.data))
    return packed.getvalue()


def _layout(folder: Path, layers: list[bytes]) -> Path:
    """An OCI image layout as a folder; its one image is tagged ``peer``."""
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)

    def blob(data: bytes, kind: str) -> dict[str, Any]:
        (blobs / sha256(data)).write_bytes(data)
        kind = f"application/vnd.oci.image.{kind}"
        return {"mediaType": kind, "digest": f"sha256:{sha256(data)}", "size": len(data)}

    config = {
        "architecture": ARCHITECTURE,
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{sha256(layer)}" for layer in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "config": blob(json.dumps(config).encode(), "config.v1+json"),
        "layers": [blob(layer, "layer.v1.tar") for layer in layers],
    }
    described = blob(json.dumps(manifest).encode(), "manifest.v1+json")
    described["annotations"] = {"org.opencontainers.image.ref.name": "peer"}
    (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [described]}))
    return folder


def _tarred(layout: Path) -> Path:
    archive = layout.with_suffix(".tar")
    with tarfile.open(archive, "w") as tar:
        tar.add(layout, ".")
    return archive


def _seen(root: Path) -> dict[str, Any]:
    """Every path with all that is told of it; names of one file tell so by the first of them."""
    first: dict[int, str] = {}
    return {name: _facts(path, first.setdefault(path.lstat().st_ino, name)) for name, path in _walk(root)}


def _walk(root: Path) -> Iterator[tuple[str, Path]]:
    yield ".", root
    for path in sorted(root.rglob("*")):
        yield str(path.relative_to(root)), path


def _facts(path: Path, first: str) -> dict[str, Any]:
    info = path.lstat()
    facts: dict[str, Any] = {
        "mode": stat.filemode(info.st_mode),
        "owner": (info.st_uid, info.st_gid),
        "time": int(info.st_mtime),
        "same": first,
    }
    if stat.S_ISREG(info.st_mode):
        facts["data"] = hashlib.sha256(path.read_bytes()).hexdigest()
        facts["xattrs"] = {name: os.getxattr(path, name) for name in os.listxattr(path)}
    elif stat.S_ISLNK(info.st_mode):
        facts["target"] = os.readlink(path)  # noqa: PTH115
    return facts


def unpacked_here(layout: Path, folder: Path) -> dict[str, Any]:
    image = ImageLibrary(folder / "library").load_archive(_tarred(layout))[0]
    subprocess.run(["unsquashfs", "-q", "-n", "-d", str(folder / "ours"), str(image.squashfs)], check=True)
    return _seen(folder / "ours")


def unpacked_by_umoci(layout: Path, folder: Path) -> dict[str, Any]:
    subprocess.run(
        ["umoci", "unpack", "--image", f"{layout}:peer", str(folder / "theirs")], check=True, capture_output=True
    )
    return _seen(folder / "theirs/rootfs")


def compared(layers: list[bytes]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What became of them here, and there.

    The time of a folder that no layer has is nobody's; that of the root is the newest in the image
    (docs/design/0008-images.md); umoci leaves the present time where it had to make a folder in a folder.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        layout = _layout(folder / "layout", layers)
        ours, theirs = unpacked_here(layout, folder), unpacked_by_umoci(layout, folder)
    for path, facts in ours.items():
        if path in theirs and (facts["time"] == 0 or path == "." or theirs[path]["time"] > LONG_AGO):
            theirs[path]["time"] = facts["time"]
    return ours, theirs


PROGRAM = Entry("init", tarfile.REGTYPE, elf(), {"mode": 0o755})


@settings(max_examples=settings().max_examples // 2)
@given(stacks())
def test_random_layers_give_the_tree_that_umoci_makes(stack: list[list[Entry]]) -> None:
    layers = [_tar([Entry(".", tarfile.DIRTYPE, fields={"mode": 0o755}), PROGRAM]), *map(_tar, stack)]
    ours, theirs = compared(layers)
    assert ours == theirs
