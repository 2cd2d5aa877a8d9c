"""Snapshots, and the templates that some are."""

from __future__ import annotations

from perdure.model.specs import Recipe
from perdure.model.values import Frozen


class LogPosition(Frozen, frozen=True, kw_only=True):
    """The point of a context log that a snapshot is bound to."""

    run_id: str
    branch: int
    seq: int
    epoch: int


class ProcessMemory(Frozen, frozen=True, kw_only=True):
    """What one process in a guest has of its memory for itself."""

    pid: int
    name: str  # as the kernel has it: at most 15 bytes
    anonymous_kib: int


class MemoryUse(Frozen, frozen=True, kw_only=True):
    """Who had a guest's memory when it was captured, as the guest's kernel counts it (proc_meminfo(5))."""

    total_kib: int
    free_kib: int
    page_cache_kib: int  # Cached and Buffers, without Shmem
    shared_kib: int  # Shmem: tmpfs and shared memory
    anonymous_kib: int  # AnonPages: of all processes
    kernel_kib: int  # Slab, PageTables, KernelStack
    processes: list[ProcessMemory] = []  # the largest, the largest first


class SnapshotInfo(Frozen, frozen=True, kw_only=True):
    """A snapshot, as lists and answers show it. Sizes are of what it stored beyond its parent."""

    digest: str  # of the manifest: sha256:HEX
    sandbox_id: str
    created: float  # seconds since the epoch
    parent: str | None = None
    memory_bytes: int = 0  # compressed bytes stored
    disk_bytes: int = 0
    state_bytes: int = 0
    pause_s: float = 0.0  # how long the vCPUs stood still (to the capture's end)
    total_s: float = 0.0  # suspend requested to durable
    position: LogPosition | None = None

    @property
    def stored_bytes(self) -> int:
        return self.memory_bytes + self.disk_bytes + self.state_bytes


class HeldSnapshot(Frozen, frozen=True, kw_only=True):
    """A snapshot that a sandbox has."""

    digests: list[str]  # its own, and those that it had before it was compacted
    position: LogPosition | None = None


class TemplateInfo(Frozen, frozen=True, kw_only=True):
    """The template of a workload, as ``fcrun template ls`` shows it."""

    name: str
    recipe: Recipe
    image_digest: str
    base: str  # name of the template (kernel, guestd, Firecracker, shape) that it was started from
    created: float
    stored_bytes: int = 0
    snapshot: str | None = None
    fresh: bool = True  # false: the image or the base has changed; the next run from it builds it again
