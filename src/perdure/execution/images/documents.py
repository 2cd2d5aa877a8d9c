"""The JSON documents of the OCI image specification and of docker's (schema 2), as far as images need them here."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from perdure.errors import ImageInvalid

DOCUMENT_MAX = 8 << 20  # bytes of a JSON document; the image specification asks readers to take 4 MiB
NESTING_MAX = 4  # indexes in indexes
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
MANIFESTS = (OCI_MANIFEST, DOCKER_MANIFEST)
INDEXES = (OCI_INDEX, DOCKER_INDEX)
CONFIGS = (OCI_CONFIG, DOCKER_CONFIG)
# Their bytes are somewhere else than in the registry, by the wish of who owns them.
FOREIGN = (
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
)
COMPRESSIONS = ("", "+gzip", "+zstd", ".gzip", ".zstd")
LAYERS = tuple(kind + suffix for kind in (OCI_LAYER, DOCKER_LAYER) for suffix in COMPRESSIONS)
FOREIGN_LAYERS = tuple(kind + suffix for kind in FOREIGN for suffix in COMPRESSIONS)


class Platform(msgspec.Struct, omit_defaults=True):
    architecture: str = ""
    os: str = ""
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


class Descriptor(msgspec.Struct, rename="camel", omit_defaults=True):
    digest: str
    size: int
    media_type: str = ""
    platform: Platform | None = None
    annotations: dict[str, str] = {}
    urls: list[str] = []


class Index(msgspec.Struct, rename="camel"):
    manifests: list[Descriptor]


class Manifest(msgspec.Struct, rename="camel", omit_defaults=True):
    config: Descriptor
    layers: list[Descriptor]
    schema_version: int = 0
    media_type: str = ""


class Kind(msgspec.Struct, rename="camel"):
    """What a document says of itself."""

    media_type: str = ""
    schema_version: int = 0


def hex_of(digest: str, where: str) -> str:
    """The digits of a ``sha256:HEX``; raises ImageInvalid for any other digest."""
    algorithm, _, encoded = digest.partition(":")
    if algorithm != "sha256" or len(encoded) != 64 or not set(encoded) <= set("0123456789abcdef"):
        raise ImageInvalid(f"{where}: the digest {digest!r} is of no known kind")
    return encoded


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def decoded(data: bytes, kind: Any, where: str, hint: str = "") -> Any:
    """A JSON document as a value of ``kind``. Raises ImageInvalid that calls it ``where``."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ImageInvalid(f"{where} is malformed: {error}", hint=hint) from None


def diff_ids(config: dict[str, Any], count: int, where: str, hint: str = "") -> list[str]:
    """The digests of the layers' tars, which a configuration lists. Raises ImageInvalid unless there are ``count``."""
    rootfs = config.get("rootfs")
    ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(ids, list) or len(ids) != count or not all(isinstance(each, str) for each in ids):
        raise ImageInvalid(f"{where} does not list one diff_id for each of {count} layers", hint=hint)
    return ids
