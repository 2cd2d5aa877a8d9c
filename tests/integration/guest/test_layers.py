"""What a guest's files differ in, as a layer of an image: applied to the image's own files it gives the guest's."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import socket
import stat
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from perdure.errors import InvalidValue
from perdure.execution.guest.tree import Tree
from perdure.execution.images.bytestream import Section
from perdure.execution.images.layers import Layer, merge
from perdure.execution.images.tree import Node
from perdure.execution.sandboxes import trees

from .conftest import Guest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="whiteouts and opaque folders are root's to make")


async def joined(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in pieces])


def merged(folder: Path, *tars: bytes) -> dict[str, Node]:
    """The paths of layers that are applied in order."""
    layers = []
    with contextlib.ExitStack() as opened:
        for number, data in enumerate(tars):
            path = folder / f"{number}.tar"
            path.write_bytes(data)
            layers.append(Layer(Section.whole(opened.enter_context(path.open("rb")), path.name)))
        return dict(merge(layers, relative_only=True, folder=folder).walk())


@pytest.fixture
def roots(tmp_path: Path) -> tuple[Path, Path, bytes]:
    """(upper, lower, the lower one as a tar)"""
    upper, lower = tmp_path / "upper", tmp_path / "lower"
    for folder in ("bin", "etc/kept", "hidden/deep", "replaced"):
        (lower / folder).mkdir(parents=True)
    shutil.copy("/bin/true", lower / "bin/true")
    for name in ("etc/gone", "etc/changed", "etc/hostname", "hidden/deep/old", "replaced/old", "etc/kept/file"):
        (lower / name).write_text("old")
    for folder in ("etc", "hidden", "new/deep", "etc/kept", "proc", "tmp"):
        (upper / folder).mkdir(parents=True)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for path in sorted(lower.rglob("*")):
            tar.add(path, str(path.relative_to(lower)), recursive=False)
    return upper, lower, packed.getvalue()


def fill(upper: Path) -> None:
    os.mknod(upper / "etc/gone", stat.S_IFCHR, 0)
    (upper / "etc/changed").write_text("new")
    (upper / "etc/hostname").write_text("0123456789ab")
    os.setxattr(upper / "hidden", "trusted.overlay.opaque", b"y")
    (upper / "hidden/mine").write_text("x")
    (upper / "replaced").write_text("a file now")
    with (upper / "new/deep/sparse").open("wb") as file:
        os.pwrite(file.fileno(), b"middle", 3 << 20)
        file.truncate(9 << 20)
    os.link(upper / "new/deep/sparse", upper / "new/other")
    (upper / "new/ümlaut\udcff").symlink_to("nowhere")
    os.setxattr(upper / "etc/changed", "user.note", b"\x00\xfe")
    os.chown(upper / "etc/changed", 12, 345_678)
    os.mkfifo(upper / "new/pipe")
    os.mknod(upper / "new/device", stat.S_IFBLK | 0o600, os.makedev(7, 1))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(upper / "new/socket"))


def tree(guest: Guest, upper: Path, lower: Path, *, content: bool = True) -> Tree:
    return guest.session.tree.of(str(upper), str(lower), content=content)


async def test_a_layer_over_its_image_is_what_the_guest_has(
    guest: Guest, roots: tuple[Path, Path, bytes], tmp_path: Path
) -> None:
    upper, lower, image = roots
    fill(upper)
    data = await joined(trees.layer(tree(guest, upper, lower)))
    found = merged(tmp_path, image, data)
    assert set(found) == {
        *(
            "bin",
            "bin/true",
            "etc",
            "etc/changed",
            "etc/hostname",
            "etc/kept",
            "etc/kept/file",
            "hidden",
            "hidden/mine",
        ),
        *("replaced", "new", "new/deep", "new/deep/sparse", "new/other", "new/pipe", "new/ümlaut\udcff"),
    }
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = {member.name: member for member in tar}
        sparse = members["new/deep/sparse"] if members["new/other"].islnk() else members["new/other"]
        file = tar.extractfile(sparse)
        assert file is not None and file.read() == bytes(3 << 20) + b"middle" + bytes((6 << 20) - 6)
        assert len(data) < 1 << 17
    assert {members[name].type for name in ("new/deep/sparse", "new/other")} >= {tarfile.LNKTYPE}
    assert found["new/other"].source == found["new/deep/sparse"].source
    changed = members["etc/changed"]
    assert (changed.uid, changed.gid, changed.pax_headers["SCHILY.xattr.user.note"]) == (12, 345_678, "\x00\udcfe")
    assert {"etc/.wh.gone", "hidden/.wh..wh..opq"} <= members.keys()
    assert not members.keys() & {"etc/kept", "proc", "tmp", "etc/hostname", "new/device", "new/socket"}


async def test_what_changed_in_words(guest: Guest, roots: tuple[Path, Path, bytes]) -> None:
    upper, lower, _ = roots
    assert await trees.changes(tree(guest, upper, lower, content=False)) != []
    shutil.rmtree(upper / "new")
    assert await trees.changes(tree(guest, upper, lower, content=False)) == []  # folders that were only copied up
    (upper / "new/deep").mkdir(parents=True)
    fill(upper)
    assert [f"{one.kind} {one.path}" for one in await trees.changes(tree(guest, upper, lower, content=False))] == [
        *("C /etc", "C /etc/changed", "D /etc/gone", "C /hidden", "D /hidden/deep", "A /hidden/mine"),
        *("A /new", "A /new/deep", "A /new/deep/sparse", "A /new/device", "A /new/other", "A /new/pipe"),
        *("A /new/socket", "A /new/ümlaut\udcff", "C /replaced"),
    ]


async def test_a_name_that_no_layer_can_hold(guest: Guest, roots: tuple[Path, Path, bytes]) -> None:
    upper, lower, _ = roots
    (upper / "etc/.wh.passwd").write_text("I am no whiteout")
    with pytest.raises(InvalidValue, match=r"/etc/\.wh\.passwd"):
        await joined(trees.layer(tree(guest, upper, lower)))


async def test_a_whole_root(guest: Guest, roots: tuple[Path, Path, bytes], tmp_path: Path) -> None:
    upper, lower, _ = roots
    os.link(lower / "etc/changed", lower / "etc/again")
    data = await joined(trees.whole(guest.session.tree.of(str(lower), str(upper))))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        names = {member.name for member in tar}
        assert tar.extractfile("etc/hostname").read() == b""  # type: ignore[union-attr]
        assert tar.extractfile("etc/again").read() == b"old"  # type: ignore[union-attr]
    assert names == {str(path.relative_to(lower)) for path in lower.rglob("*")}
