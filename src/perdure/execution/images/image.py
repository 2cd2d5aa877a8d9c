"""What an image is: a read-only squashfs disk, and how its author wants it to be run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from perdure.model import Frozen


class ImageConfig(Frozen):
    """The part of an OCI image configuration that a sandbox obeys (OCI image-spec, config.md).

    ``exposed_ports`` are ``PORT/PROTOCOL``; ``volumes`` are absolute paths; ``user`` is ``USER[:GROUP]``, names or ids.
    """

    entrypoint: list[str] = []
    cmd: list[str] = []
    env: dict[str, str] = {}
    cwd: str = ""
    user: str = ""
    exposed_ports: list[str] = []
    stop_signal: str = ""
    labels: dict[str, str] = {}
    volumes: list[str] = []


@dataclass(frozen=True)
class Image:
    """An image of the library. ``digest`` is that of its ``config.json``, which names the squashfs by digest."""

    name: str  # NAME:TAG; empty for an image that lost its name to a newer one
    digest: str  # sha256:HEX
    squashfs: Path
    size_bytes: int  # of the squashfs file
    created: float  # seconds since the epoch: when it came into this library
    config: ImageConfig
