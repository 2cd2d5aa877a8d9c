"""What a snapshot consists of, as an OCI image manifest and its config (docs/formats/manifest.md). No I/O.

The manifest lists every blob that a restore needs, told apart by media type; the config holds the facts. Together
they are one ``Snapshot``. Both are canonical JSON: the same snapshot always has the same digest.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from ..errors import SnapshotInvalid
from ..model import Frozen, LogPosition, SnapshotInfo

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT = "application/vnd.perdure.snapshot.v1"
CONFIG = "application/vnd.perdure.snapshot.config.v1+json"
MEMORY_LAYER = "application/vnd.perdure.memory.layer.v1+zstd"
MEMORY_MAP = "application/vnd.perdure.memory.map.v1"
DISK_LAYER = "application/vnd.perdure.disk.layer.v1+zstd"
DISK_MAP = "application/vnd.perdure.disk.map.v1"
STATE = "application/vnd.perdure.machine.state.v1+zstd"
LIMIT_BYTES = 4 << 20  # the OCI distribution specification asks registries to take manifests of this size


def digest_of(data: bytes) -> str:
    """``sha256:HEX`` of the bytes, as OCI names them."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Descriptor(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """An OCI content descriptor: what a blob is, its name and its size in bytes."""

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] = {}


class Facts(Frozen):
    """What must be the same where a snapshot is restored. A difference in any field refuses the restore."""

    firecracker: str  # version, like "1.12.1"
    cpu_vendor: str  # as /proc/cpuinfo says below the line: AuthenticAMD
    cpu_family: int
    vcpus: int
    memory_mib: int
    kernel: str  # digest of vmlinux
    guestd: str  # digest of the guest's initrd


class Space(Frozen):
    """A byte space (memory or disk) at one moment: its layers, oldest first, and the map flattened over them."""

    size: int  # bytes
    layers: list[Descriptor]
    map: Descriptor


class Config(Frozen):
    """The facts of a snapshot: the config blob."""

    version: int
    sandbox_id: str
    created: float
    template: str  # name of its folder
    template_digest: str  # what the lowest memory layer is a difference to
    facts: Facts
    image_digest: str
    memory_size: int
    disk_size: int
    parent: str | None = None
    position: LogPosition | None = None
    memory_bytes: int = 0  # bytes stored beyond the parent
    disk_bytes: int = 0
    state_bytes: int = 0
    pause_s: float = 0.0


class Snapshot(Frozen):
    """A stored snapshot. ``digest`` names its manifest."""

    digest: str
    config: Config
    memory: Space
    disk: Space
    state: Descriptor

    @property
    def descriptors(self) -> list[Descriptor]:
        """Every blob that a restore reads."""
        return [*self.memory.layers, self.memory.map, *self.disk.layers, self.disk.map, self.state]

    def info(self, *, total_s: float = 0.0) -> SnapshotInfo:
        """The snapshot as lists and answers show it."""
        config = self.config
        return SnapshotInfo(
            digest=self.digest,
            sandbox_id=config.sandbox_id,
            created=config.created,
            parent=config.parent,
            memory_bytes=config.memory_bytes,
            disk_bytes=config.disk_bytes,
            state_bytes=config.state_bytes,
            pause_s=config.pause_s,
            total_s=total_s,
            position=config.position,
        )
