"""What an image is: a read-only squashfs disk, and how its author wants it to be run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from perdure.model import Frozen, HealthCheck


class ImageConfig(Frozen, frozen=True, kw_only=True):
    """The part of an OCI image configuration that a sandbox obeys (OCI image-spec, config.md).

    ``exposed_ports`` are ``PORT/PROTOCOL``; ``volumes`` are absolute paths; ``user`` is ``USER[:GROUP]``, names or ids.
    """

    entrypoint: list[str] = msgspec.field(default_factory=list)
    cmd: list[str] = msgspec.field(default_factory=list)
    env: dict[str, str] = msgspec.field(default_factory=dict)
    cwd: str = ""
    user: str = ""
    exposed_ports: list[str] = msgspec.field(default_factory=list)
    stop_signal: str = ""
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    volumes: list[str] = msgspec.field(default_factory=list)
    health: HealthCheck | None = None


@dataclass(frozen=True)
class Image:
    """An image of the library. ``digest`` is that of its ``config.json``, which names the squashfs by digest."""

    name: str  # NAME:TAG; empty for an image that lost its name to a newer one
    digest: str  # sha256:HEX
    squashfs: Path
    size_bytes: int  # of the squashfs file
    created: float  # seconds since the epoch: when it came into this library
    config: ImageConfig
    manifest: str = ""  # digest of its OCI manifest (``parts``); empty: it came without one, with a snapshot
    pulled: str = ""  # digest that a registry has under its name: of the manifest, or of an index that lists it
