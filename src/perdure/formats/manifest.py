"""What a snapshot consists of, as an OCI image manifest and its config (docs/formats/manifest.md). No I/O.

The manifest lists every blob that a restore needs, told apart by media type; the config holds the facts. Together
they are one ``Snapshot``. Both are canonical JSON: the same snapshot always has the same digest.
"""

from __future__ import annotations

import hashlib

import msgspec

from perdure.errors import SnapshotInvalid
from perdure.model import Frozen, LogPosition, MemoryUse, SandboxSpec, SnapshotInfo

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT = "application/vnd.perdure.snapshot.v1"
CONFIG = "application/vnd.perdure.snapshot.config.v1+json"
MEMORY_LAYER = "application/vnd.perdure.memory.layer.v1+zstd"
MEMORY_MAP = "application/vnd.perdure.memory.map.v1"
DISK_LAYER = "application/vnd.perdure.disk.layer.v1+zstd"
DISK_MAP = "application/vnd.perdure.disk.map.v1"
STATE = "application/vnd.perdure.machine.state.v1+zstd"
VERSION = 1
_NEWER = "Update Perdure: the snapshot was made by a newer version."
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


class Facts(Frozen, frozen=True, kw_only=True):
    """What a snapshot was made with. All but kernel and guestd must be the same where it is restored."""

    firecracker: str  # version, like "1.12.1"
    cpu_vendor: str  # as /proc/cpuinfo says below the line: AuthenticAMD
    cpu_family: int
    vcpus: int
    memory_mib: int
    kernel: str  # digest of vmlinux
    guestd: str  # digest of the guest's initrd


class Space(Frozen, frozen=True, kw_only=True):
    """A byte space (memory or disk) at one moment: its layers, oldest first, and the map flattened over them."""

    size: int  # bytes
    layers: list[Descriptor]
    map: Descriptor


class Origin(Frozen, frozen=True, kw_only=True):
    """What another sandbox must know to go on from the snapshot: a fork, or the same one on another node."""

    spec: SandboxSpec  # of the sandbox, without where its calls went
    main: str  # the id of the main process in the guest
    stdout: int = 0  # how much the main process had written
    stderr: int = 0
    started: float | None = None
    # by name, what each of its volumes was known by then (``sandboxes.volumes``)
    volumes: dict[str, list[int]] = msgspec.field(default_factory=dict)
    opened: list[str] = msgspec.field(default_factory=list)  # names by which it was let out, and remembers addresses of


class Config(Frozen, frozen=True, kw_only=True):
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
    origin: Origin | None = None  # None: made before there were forks
    memory_use: MemoryUse | None = None
    replaces: list[str] = msgspec.field(default_factory=list)  # of the same content: compacted from them


class Snapshot(Frozen, frozen=True, kw_only=True):
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


def encode(snapshot: Snapshot) -> tuple[bytes, bytes]:
    """(manifest, config): their bytes. ``snapshot.digest`` is not read; it becomes the manifest's."""
    config = msgspec.json.encode(snapshot.config, order="sorted")
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": ARTIFACT,
        "config": Descriptor(media_type=CONFIG, digest=digest_of(config), size=len(config)),
        "layers": snapshot.descriptors,
    }
    return msgspec.json.encode(manifest, order="sorted"), config


class _Manifest(msgspec.Struct, rename="camel"):
    schema_version: int
    config: Descriptor
    layers: list[Descriptor]
    media_type: str = MANIFEST
    artifact_type: str = ""


def config_of(manifest: bytes) -> Descriptor:
    """Which blob is the config of a manifest of ours; raises ``SnapshotInvalid`` for any other manifest."""
    return _decode_manifest(manifest).config


def decode(manifest: bytes, config: bytes) -> Snapshot:
    """The snapshot; raises ``SnapshotInvalid`` with the reason."""
    parsed = _decode_manifest(manifest)
    if digest_of(config) != parsed.config.digest:
        raise SnapshotInvalid(f"config blob {parsed.config.digest} does not have the digest that the manifest names")
    facts = _decode_config(config)
    found: dict[str, list[Descriptor]] = {kind: [] for kind in (MEMORY_LAYER, MEMORY_MAP, DISK_LAYER, DISK_MAP, STATE)}
    for layer in parsed.layers:
        if layer.media_type not in found:
            raise SnapshotInvalid(f"the manifest has a blob of unknown type {layer.media_type}", hint=_NEWER)
        found[layer.media_type].append(layer)
    for kind in (MEMORY_MAP, DISK_MAP, STATE):
        if len(found[kind]) != 1:
            raise SnapshotInvalid(f"the manifest has {len(found[kind])} blobs of type {kind}, not one")
    return Snapshot(
        digest=digest_of(manifest),
        config=facts,
        memory=Space(size=facts.memory_size, layers=found[MEMORY_LAYER], map=found[MEMORY_MAP][0]),
        disk=Space(size=facts.disk_size, layers=found[DISK_LAYER], map=found[DISK_MAP][0]),
        state=found[STATE][0],
    )


def artifact_of(manifest: bytes) -> str:
    """The artifact type that an OCI image manifest carries; raises ``SnapshotInvalid`` when it is no such manifest."""
    return _parse(manifest).artifact_type


def blobs_of(manifest: bytes) -> list[Descriptor]:
    """All blobs that an OCI image manifest names, of whatever artifact; raises ``SnapshotInvalid``."""
    parsed = _parse(manifest)
    return [parsed.config, *parsed.layers]


def _decode_manifest(data: bytes) -> _Manifest:
    manifest = _parse(data)
    if manifest.artifact_type != ARTIFACT:
        ours = manifest.artifact_type.startswith(ARTIFACT.removesuffix("1"))
        kind = f"of type {manifest.artifact_type or '(none)'}, not {ARTIFACT}"
        raise SnapshotInvalid(f"the manifest is {kind}", hint=_NEWER if ours else "It is not a snapshot of Perdure.")
    return manifest


def _parse(data: bytes) -> _Manifest:
    if len(data) > LIMIT_BYTES:
        raise SnapshotInvalid(f"a manifest of {len(data)} bytes: the limit is {LIMIT_BYTES}")
    try:
        manifest = msgspec.json.decode(data, type=_Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SnapshotInvalid(f"the manifest does not read: {error}") from None
    if manifest.schema_version != 2 or manifest.media_type != MANIFEST:
        raise SnapshotInvalid("the manifest is not an OCI image manifest (schema version 2)")
    for descriptor in (manifest.config, *manifest.layers):
        check_digest(descriptor.digest)
        if descriptor.size < 0:
            raise SnapshotInvalid(f"the manifest gives blob {descriptor.digest} a negative size")
    return manifest


def _decode_config(data: bytes) -> Config:
    try:
        version = msgspec.json.decode(data, type=_Version).version
        if version != VERSION:
            hint = _NEWER if version > VERSION else ""
            raise SnapshotInvalid(f"config format version {version}; this program reads version {VERSION}", hint=hint)
        return msgspec.json.decode(data, type=Config)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SnapshotInvalid(f"the snapshot's config does not read: {error}") from None


class _Version(msgspec.Struct):
    version: int


def check_digest(digest: str) -> str:
    """The hex part of ``sha256:HEX``; raises ``SnapshotInvalid`` for anything else (a digest becomes a file name)."""
    algorithm, _, name = digest.partition(":")
    if algorithm != "sha256" or len(name) != 64 or not set(name) <= set("0123456789abcdef"):
        raise SnapshotInvalid(f"{digest!r} is not a sha256 digest")
    return name
