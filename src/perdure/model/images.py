"""Images, and how they are built."""

from __future__ import annotations

from perdure.model.values import Frozen


class ImageInfo(Frozen, frozen=True, kw_only=True):
    """An image of a node, as ``fcrun images`` shows it."""

    name: str  # NAME:TAG, or NAME@sha256:HEX of one that was pulled by digest
    digest: str  # of its squashfs file: sha256:HEX
    size_bytes: int = 0
    created: float = 0.0
    pulled: str = ""  # digest that a registry has under its name
    labels: dict[str, str] = {}
    manifest: str = ""  # digest of its manifest: what a registry that it is pushed to calls it


class ImageStep(Frozen, frozen=True, kw_only=True):
    """One step by which an image was made, as ``fcrun history`` shows it."""

    created: str = ""  # RFC 3339
    created_by: str = ""
    comment: str = ""
    size_bytes: int = 0  # of the files' tar that it added
    layer: str = ""  # digest of that tar; empty: it added none


class DockerfileBuild(Frozen, frozen=True, kw_only=True):
    """What is to be built of a context."""

    names: list[str] = []  # of the image; none: it is found by its digest
    dockerfile: str = "Dockerfile"  # in the context
    arguments: dict[str, str] = {}
    labels: dict[str, str] = {}
    target: str = ""  # the stage to build; empty: the last one
    platform: str = ""  # such as linux/amd64; empty: this machine's
    pull: bool = False  # ask registries even for images that are here


class Pruned(Frozen, frozen=True, kw_only=True):
    """Images that were removed because nothing needs them."""

    untagged: list[str] = []  # names
    deleted: list[str] = []  # digests
    freed_bytes: int = 0
