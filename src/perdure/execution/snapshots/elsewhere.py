"""What a store needs to know of layers whose bytes are beyond this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

from perdure.formats.manifest import Descriptor

if TYPE_CHECKING:
    from perdure.execution.snapshots.layers import Layer


class Elsewhere(Protocol):
    """What opens them: ``cache.FrameCache``."""

    def open(self, descriptor: Descriptor, url: str) -> Layer:
        """Raises Unavailable, NotFound, NoRights, SnapshotInvalid, NoSpace."""


class Place(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """``remotes/HEX``: the store that holds a layer (docs/formats/manifest.md)."""

    url: str
    size: int
    media_type: str
