"""The image of a snapshot's disk as an artifact of its own (docs/formats/remote.md)."""

from __future__ import annotations

from pathlib import Path

import msgspec

from perdure.errors import NotFound, SnapshotInvalid
from perdure.execution.images.library import ImageLibrary
from perdure.execution.registry.upload import Parcel
from perdure.execution.snapshots.stores.download import Download
from perdure.formats import artifact
from perdure.formats.artifact import IMAGE, IMAGE_CONFIG, IMAGE_DISK, Artifact
from perdure.formats.manifest import Descriptor, check_digest


class _Document(msgspec.Struct):
    """The part of an image's ``config.json`` that names its disk."""

    squashfs: str


def tag_of(digest: str) -> str:
    return f"image-{check_digest(digest)[:32]}"


def parcel(images: ImageLibrary, digest: str) -> Parcel:
    """Raises NotFound (the library does not have it), ProtocolError (it is damaged)."""
    config, disk = images.export(digest)
    blobs = [
        (Descriptor(media_type=IMAGE_CONFIG, digest=digest, size=config.stat().st_size), config),
        (Descriptor(media_type=IMAGE_DISK, digest=_disk_digest(config.read_bytes()), size=disk.stat().st_size), disk),
    ]
    manifest = artifact.encode(Artifact(kind=IMAGE, config=blobs[0][0], layers=[blobs[1][0]]))
    return Parcel(tag_of(digest), manifest, blobs)


def fetch(images: ImageLibrary, digest: str, download: Download) -> None:
    """Bring the image into the library, where it has no name; nothing when it is there.

    Raises NotFound (the store has none), SnapshotInvalid (it has another one), ProtocolError (the one here is damaged),
    ImageInvalid, NoSpace, and what the store raises.
    """
    try:
        images.get(digest)
        return
    except NotFound:
        pass
    held = artifact.decode(download.remote.manifest(tag_of(digest)), IMAGE)
    disk = held.one(IMAGE_DISK)
    if held.config.digest != digest:
        raise SnapshotInvalid(f"{download.remote.url} has image {held.config.digest} under the tag of {digest}")
    if _disk_digest(download.small(held.config)) != disk.digest:
        raise SnapshotInvalid(f"{download.remote.url} has another disk beside the configuration of image {digest}")

    def fill(folder: Path) -> None:
        download.into_files([(held.config, folder / "config.json"), (disk, folder / "image.squashfs")])

    download.expect([held.config, disk])
    images.adopt(digest, fill)


def _disk_digest(config: bytes) -> str:
    try:
        digest = msgspec.json.decode(config, type=_Document).squashfs
    except msgspec.MsgspecError as error:
        raise SnapshotInvalid(f"an image's configuration does not read: {error}") from None
    check_digest(digest)
    return digest
