"""Where snapshots and images are kept beyond this machine: one contract for a folder, a bucket and a registry.

All three hold the same bytes in the same roles: blobs named by their digest, and manifests that a tag names. A store
is only ever added to; what no tag leads to is the store's own to collect.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol

from perdure.errors import InvalidValue, SnapshotInvalid
from perdure.formats.manifest import Descriptor, digest_of

INTERNAL_TAGS = ("template-", "image-", "working-set-")  # beginnings of those that no snapshot has
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")  # as the OCI distribution specification has it


class BlobSource(Protocol):
    """What blobs come from. Blocking and thread-safe; errors as of a ``RemoteStore``."""

    @property
    def url(self) -> str: ...

    def read(self, descriptor: Descriptor, offset: int, length: int) -> bytes:
        """Exactly these bytes of a blob. Raises NotFound."""


class BlobSink(Protocol):
    """What blobs and their manifests go to. Blocking and thread-safe; errors as of a ``RemoteStore``."""

    @property
    def url(self) -> str: ...

    def has(self, descriptor: Descriptor) -> bool:
        """Whether it holds the blob, in its full length."""

    def put(self, descriptor: Descriptor, source: Path) -> None:
        """Add a blob from a file whose bytes were verified. One that is there already stays."""

    def tag(self, name: str, manifest: bytes, descriptor: Descriptor) -> None:
        """Add a manifest, all of whose blobs are there, and let the tag name it from now on."""


class RemoteStore(BlobSource, BlobSink, Protocol):
    """Blocking and thread-safe. ``url`` opens it again.

    Every method raises Unavailable (no answer, or a broken one, after retries), NoRights (it refuses us) and
    SnapshotInvalid (what it gave is not what was asked for). Bytes that ``read`` gives are the caller's to verify.
    """

    def manifest(self, name: str) -> bytes:
        """The manifest that a tag or a digest names, of at most 4 MiB. Raises NotFound."""

    def tags(self) -> list[str]:
        """All tags, sorted."""

    def close(self) -> None:
        """Let go of connections."""


def check_tag(name: str) -> str:
    """Raises InvalidValue for what no store takes as a tag."""
    if not TAG.fullmatch(name):
        raise InvalidValue(
            f"{name!r} is not a tag",
            hint="Use letters, digits, '_', '.' and '-', at most 128, the first no '.' or '-'.",
        )
    return name


def checked(name: str, data: bytes) -> bytes:
    """A manifest as it was asked for. Raises SnapshotInvalid when ``name`` is a digest, and not this manifest's."""
    if name.startswith("sha256:") and digest_of(data) != name:
        raise SnapshotInvalid(f"manifest {name}: the store gave one with the digest {digest_of(data)}")
    return data
