"""Templates, images and working sets as OCI artifacts, as stores hold them (docs/formats/remote.md).

An artifact is an image manifest with an artifact type of its own, a config blob and layer blobs. No I/O.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from perdure.errors import SnapshotInvalid
from perdure.formats.manifest import LIMIT_BYTES, MANIFEST, Descriptor, check_digest

TEMPLATE = "application/vnd.perdure.template.v1"
TEMPLATE_CONFIG = "application/vnd.perdure.template.config.v1+json"
IMAGE = "application/vnd.perdure.image.v1"
IMAGE_CONFIG = "application/vnd.perdure.image.config.v1+json"
IMAGE_DISK = "application/vnd.perdure.image.disk.v1+squashfs"
WORKING_SET = "application/vnd.perdure.working-set.v1"
EMPTY = "application/vnd.oci.empty.v1+json"  # the config of an artifact that needs none (OCI image-spec 1.1)
EMPTY_BYTES = b"{}"


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """What a manifest names."""

    kind: str  # its artifact type
    config: Descriptor
    layers: Sequence[Descriptor]
    subject: Descriptor | None = None  # the manifest that it says something about

    def one(self, media_type: str) -> Descriptor:
        """The only layer of this type. Raises SnapshotInvalid."""
        found = self.all(media_type)
        if len(found) != 1:
            raise SnapshotInvalid(f"the {self.kind} has {len(found)} blobs of type {media_type}, not one")
        return found[0]

    def all(self, media_type: str) -> list[Descriptor]:
        return [layer for layer in self.layers if layer.media_type == media_type]


class _Manifest(msgspec.Struct, rename="camel", omit_defaults=True):
    config: Descriptor
    layers: list[Descriptor]
    schema_version: int = 0
    media_type: str = ""
    artifact_type: str = ""
    subject: Descriptor | None = None


def encode(artifact: Artifact) -> bytes:
    """Its manifest: canonical JSON."""
    return msgspec.json.encode(
        _Manifest(
            config=artifact.config,
            layers=list(artifact.layers),
            schema_version=2,
            media_type=MANIFEST,
            artifact_type=artifact.kind,
            subject=artifact.subject,
        ),
        order="sorted",
    )


def decode(data: bytes, kind: str) -> Artifact:
    """The artifact; raises SnapshotInvalid for another kind, and for what is no manifest."""
    if len(data) > LIMIT_BYTES:
        raise SnapshotInvalid(f"a manifest of {len(data)} bytes: the limit is {LIMIT_BYTES}")
    try:
        found = msgspec.json.decode(data, type=_Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SnapshotInvalid(f"the manifest of a {kind} does not read: {error}") from None
    if found.schema_version != 2 or found.media_type != MANIFEST or found.artifact_type != kind:
        raise SnapshotInvalid(f"the manifest is of {found.artifact_type or found.media_type!r}, not of {kind}")
    for blob in (found.config, *found.layers):
        check_digest(blob.digest)
        if blob.size < 0:
            raise SnapshotInvalid(f"the manifest of a {kind} names a blob of {blob.size} bytes")
    return Artifact(kind=kind, config=found.config, layers=found.layers, subject=found.subject)
