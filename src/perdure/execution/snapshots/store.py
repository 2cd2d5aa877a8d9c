"""Where layers and manifests live: a folder in the OCI image layout."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ...formats.manifest import Snapshot


class Store:
    """``Store(home.store)``. Thread-safe; several processes may use one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, digest: str) -> Snapshot: ...
    def snapshots(self, sandbox_id: str | None = None) -> list[Snapshot]: ...
    def remove(self, digests: Iterable[str]) -> int:
        """Forget snapshots and delete the blobs that no other needs; the bytes freed."""
    def keep_working_set(self, digest: str, blocks: Iterable[int]) -> None:
        """Remember which blocks a machine touched first after a restore of ``digest``."""
    def working_set(self, digest: str) -> list[int]: ...
