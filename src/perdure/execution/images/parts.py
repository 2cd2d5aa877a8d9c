"""The parts of an image as OCI has them: manifest, configuration and layers, kept so that it can be sent on as it came.

The disk that sandboxes use is made from these once. An image that came from a registry or an OCI archive keeps its very
bytes, so that its digests stay; of the others (``docker save``, ``import``, ``build``) a manifest is written here, and
layers that are not compressed are with gzip (docs/design/0008-images.md).
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from isal import isal_zlib

from perdure.errors import ImageInvalid
from perdure.execution.images.blobs import Blobs
from perdure.execution.images.bytestream import CHUNK, Section
from perdure.execution.images.documents import (
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    decoded,
    diff_ids,
    digest_of,
)
from perdure.execution.images.layers import Layer

GZIP_LEVEL = 2  # of 0 to 3: 3 takes almost twice as long for 2 % less
_GZIP_BITS = 31  # a window of 2**15 bytes, and 16: with a gzip header
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class KeptLayer:
    """One layer of an image that is here. ``path``: its blob, compressed as ``media_type`` says."""

    path: Path
    digest: str  # of the blob
    size_bytes: int
    media_type: str
    diff_id: str  # of the tar in it


@dataclass(frozen=True)
class Parts:
    """All of an image. ``manifest`` and ``config`` are the very bytes; ``media_type`` is the manifest's."""

    manifest: bytes
    media_type: str
    config: bytes
    config_media_type: str
    layers: tuple[KeptLayer, ...]

    @property
    def digest(self) -> str:
        """What a registry calls the image."""
        return digest_of(self.manifest)

    @property
    def config_digest(self) -> str:
        """What docker calls the image."""
        return digest_of(self.config)

    @property
    def document(self) -> dict[str, Any]:
        """The configuration: ``config``, ``rootfs``, ``history``, ``created``, ``architecture`` …"""
        found: dict[str, Any] = msgspec.json.decode(self.config)
        return found

    @property
    def history(self) -> list[dict[str, Any]]:
        """How it was made, oldest first: ``created``, ``created_by``, ``comment``, ``empty_layer`` (OCI config.md)."""
        found = self.document.get("history")
        return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def load(blobs: Blobs, manifest_digest: str) -> Parts:
    """The parts that a manifest names. Raises NotFound, ImageInvalid."""
    data = blobs.read(manifest_digest)
    manifest: Manifest = decoded(data, Manifest, f"manifest {manifest_digest}")
    config = blobs.read(manifest.config.digest)
    document = decoded(config, dict[str, Any], f"configuration {manifest.config.digest}")
    ids = diff_ids(document, len(manifest.layers), f"configuration {manifest.config.digest}")
    return Parts(
        data,
        manifest.media_type or OCI_MANIFEST,
        config,
        manifest.config.media_type or OCI_CONFIG,
        tuple(
            KeptLayer(blobs.path(layer.digest), layer.digest, layer.size, layer.media_type, diff_id)
            for layer, diff_id in zip(manifest.layers, ids, strict=True)
        ),
    )


def needed(blobs: Blobs, manifest_digest: str) -> list[str]:
    """The digests of all blobs of the image: the manifest's, its configuration's, its layers'."""
    manifest: Manifest = decoded(blobs.read(manifest_digest), Manifest, f"manifest {manifest_digest}")
    return [manifest_digest, manifest.config.digest, *(layer.digest for layer in manifest.layers)]


def keep_as_is(blobs: Blobs, manifest: bytes, config: bytes, layers: Iterable[Layer]) -> str:
    """Keep an image of an archive that has a manifest, byte for byte; the manifest's digest. Raises ImageInvalid."""
    for layer in layers:
        if blobs.find(layer.blob_digest) is None:
            with blobs.writer() as out:
                _copy(layer.section, out.write)
                if out.digest != layer.blob_digest:
                    raise ImageInvalid(f"{layer.name} changed while it was read", hint="Write the archive, then load.")
                out.commit()
    blobs.add(config)
    return blobs.add(manifest)


def compose(
    blobs: Blobs,
    layers: Sequence[Layer | KeptLayer],
    document: dict[str, Any],
    *,
    config: bytes = b"",
    progress: Progress | None = None,
) -> str:
    """Keep an image that has no manifest yet; the digest of the one that is written.

    document: its configuration, of which ``rootfs`` is filled in; or ``config``: its very bytes, which list the layers.
    """
    kept = [_keep(blobs, layer, progress) if isinstance(layer, Layer) else layer for layer in layers]
    if not config:
        rootfs = {"type": "layers", "diff_ids": [layer.diff_id for layer in kept]}
        config = msgspec.json.encode({**document, "rootfs": rootfs}, order="sorted")
    manifest = Manifest(
        schema_version=2,
        media_type=OCI_MANIFEST,
        config=Descriptor(media_type=OCI_CONFIG, digest=blobs.add(config), size=len(config)),
        layers=[Descriptor(media_type=one.media_type, digest=one.digest, size=one.size_bytes) for one in kept],
    )
    return blobs.add(msgspec.json.encode(manifest, order="sorted"))


def now() -> str:
    """As configurations have it (RFC 3339)."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _keep(blobs: Blobs, layer: Layer, progress: Progress | None) -> KeptLayer:
    section = layer.section
    start = section.read_at(0, 4)
    how = "+gzip" if start.startswith(_GZIP) else "+zstd" if start == _ZSTD else ""
    with blobs.writer() as out:
        if how:
            _copy(section, out.write)
            diff_id = layer.diff_id or _diff_id(section)
        else:
            how, reader = "+gzip", section.open(verify=True)
            compressor = isal_zlib.compressobj(GZIP_LEVEL, isal_zlib.DEFLATED, _GZIP_BITS)
            while data := reader.read(CHUNK):
                out.write(compressor.compress(data))
                if progress is not None:
                    progress("keeping", reader.tell(), 0 if section.is_compressed else section.size_bytes)
            out.write(compressor.flush())
            diff_id = reader.digest
        digest = out.digest if blobs.find(out.digest) else out.commit()
        return KeptLayer(blobs.path(digest), digest, out.size_bytes, OCI_LAYER + how, diff_id)


def _copy(section: Section, write: Callable[[bytes], None]) -> None:
    offset = 0
    while data := section.read_at(offset, CHUNK):
        write(data)
        offset += len(data)


def _diff_id(section: Section) -> str:
    reader = section.open(verify=True)
    reader.drain()
    return reader.digest
