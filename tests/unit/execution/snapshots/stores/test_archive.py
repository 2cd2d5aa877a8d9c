"""A snapshot in one file: what was written is read, and what was cut, changed or made up is refused by name."""

from __future__ import annotations

import io
import subprocess
import tarfile
from array import array
from collections.abc import Callable
from pathlib import Path

import pytest

from perdure.errors import ImageInvalid, NotFound, SnapshotInvalid
from perdure.execution.snapshots import transfer
from perdure.execution.snapshots.stores import archive
from perdure.execution.snapshots.stores.folder import FolderStore
from perdure.formats.manifest import Snapshot
from perdure.testing.places import DISK, Place, restored
from perdure.testing.stores import Node


@pytest.fixture
def whole(place: Place) -> bytes:
    here = place.here
    with transfer.packed(here.store, here.templates, here.images, place.snapshot) as parcels:
        return b"".join(archive.write(parcels))


def imported(place: Place, data: bytes) -> Snapshot:
    path, there = place.there.root / "the archive", place.there
    path.write_bytes(data)
    store = archive.ArchiveStore(path)
    try:
        return transfer.pull(there.store, there.templates, there.images, store, archive.tag_of(store))
    finally:
        store.close()


def members(data: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(member, tar.extractfile(member).read() if member.isreg() else b"") for member in tar]  # type: ignore[union-attr]


def packed(parts: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for member, data in parts:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def test_what_was_exported_is_imported(place: Place, whole: bytes) -> None:
    found = imported(place, whole)
    assert found == place.snapshot
    assert restored(place.there, found) == (place.content, DISK)
    assert place.there.store.working_set(found.digest) == [4, 5, 77]
    assert place.there.images.get(place.image).squashfs.read_bytes() == b"squashfs"
    assert imported(place, whole) == found  # again


def test_it_is_the_layout_that_a_push_makes(place: Place, whole: bytes, tmp_path: Path) -> None:
    """Unpacked by tar(1) it is a folder to pull from, and such a folder, packed by it, is an archive."""
    folder, there = tmp_path / "unpacked", place.there
    folder.mkdir()
    subprocess.run(["tar", "-x"], cwd=folder, input=whole, check=True)
    store = FolderStore(folder)
    pulled = transfer.pull(there.store, there.templates, there.images, store, archive.tag_of(store))
    assert pulled == place.snapshot
    again = subprocess.run(["tar", "-c", "."], cwd=folder, capture_output=True, check=True).stdout
    assert imported(place, again) == place.snapshot


def extra(name: str, kind: bytes = tarfile.REGTYPE) -> Callable[[bytes], bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "index.json" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
    return lambda data: packed([*members(data), (member, b"")])


def without(word: str) -> Callable[[bytes], bytes]:
    return lambda data: packed([part for part in members(data) if word not in part[0].name])


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda data: data[: len(data) // 2], "is no exported snapshot"),
        (lambda data: data[:-1024], "end mark is missing"),
        (lambda data: b"", "is no exported snapshot"),
        (lambda data: b"\x1f\x8b" + data, "is no tar"),
        (lambda data: data[:512].replace(b"oci-layout", b"oci-layou!") + data[512:], "is no exported snapshot"),
        (extra("../../etc/passwd"), "'../../etc/passwd'"),
        (extra("/etc/passwd"), "'/etc/passwd'"),
        (extra("blobs/sha256/../x"), "blobs/sha256/../x"),
        (extra("index.json"), "'index.json'"),
        (extra("blobs/sha256/" + "a" * 64, tarfile.SYMTYPE), "a" * 64),
        (extra("blobs/sha256/" + "a" * 64, tarfile.LNKTYPE), "a" * 64),
        (extra("manifest.json"), "manifest.json"),
        (without("index.json"), "no index.json"),
        (without("blobs/"), "has no blob"),
    ],
)
def test_bad_archives(place: Place, whole: bytes, harm: Callable[[bytes], bytes], words: str) -> None:
    with pytest.raises((SnapshotInvalid, NotFound)) as caught:
        imported(place, harm(whole))
    assert words in caught.value.message
    assert place.there.store.digests() == []


def test_a_changed_byte_anywhere_is_found(place: Place, whole: bytes, tmp_path: Path) -> None:
    parts, refused = members(whole), 0
    for number, (member, data) in enumerate(parts):
        hint = b"working-set" in data or data in (b"{}", array("I", (4, 5, 77)).tobytes())
        if not member.name.startswith("blobs/sha256/") or not data or hint:  # a restore is only slower without that
            continue
        harmed = [*parts]
        harmed[number] = (member, data[:-1] + bytes([data[-1] ^ 1]))
        with Node(tmp_path / f"node-{number}") as place.there:
            with pytest.raises((SnapshotInvalid, ImageInvalid, NotFound)):
                imported(place, packed(harmed))
            assert place.there.store.digests() == []
            refused += 1
    assert refused >= 10


def test_an_archive_with_no_snapshot_or_two(place: Place, tmp_path: Path) -> None:
    here = place.here
    with transfer.packed(here.store, here.templates, here.images, place.snapshot) as parcels:
        images = b"".join(archive.write([one for one in parcels if one.tag.startswith("image-")]))
        with transfer.packed(here.store, here.templates, here.images, place.first) as others:
            both = b"".join(archive.write([*parcels, *others]))
    with pytest.raises(SnapshotInvalid, match="no snapshot"):
        imported(place, images)
    with pytest.raises(SnapshotInvalid, match="2 snapshots"):
        imported(place, both)


def test_what_is_damaged_here_is_not_exported_as_whole(place: Place) -> None:
    here = place.here
    layer = here.store.blob_path(place.snapshot.memory.layers[0].digest)
    layer.chmod(0o600)
    with layer.open("r+b") as file:
        file.seek(layer.stat().st_size // 2)
        file.write(b"\xff\x00\xff")
    with (
        transfer.packed(here.store, here.templates, here.images, place.snapshot) as parcels,
        pytest.raises(SnapshotInvalid, match="was damaged or changed"),
    ):
        for _ in archive.write(parcels):
            pass
    layer.unlink()
    with (
        pytest.raises(NotFound, match="is not here"),
        transfer.packed(here.store, here.templates, here.images, place.snapshot),
    ):
        pass
