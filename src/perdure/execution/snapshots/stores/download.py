"""Blobs of snapshots on their way from a store."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from perdure.errors import SnapshotInvalid
from perdure.execution.registry import download
from perdure.execution.registry.contract import RemoteStore
from perdure.execution.snapshots.diskspace import space_checked
from perdure.execution.snapshots.store import Store
from perdure.formats.manifest import Descriptor
from perdure.host.progress import Progress


class Download(download.Download):
    """Into a node's store as well. What it finds wrong is a SnapshotInvalid, a full disk NoSpace."""

    invalid = SnapshotInvalid

    def __init__(self, remote: RemoteStore, progress: Progress, what: str = "Pulling") -> None:
        super().__init__(remote, progress, what)
        self.remote = remote

    def into_store(self, store: Store, descriptors: Iterable[Descriptor]) -> None:
        """Each blob, one beside the other. Raises NoSpace, SnapshotInvalid, and what the remote store raises."""
        self.all(partial(self._into_store, store, descriptor) for descriptor in descriptors)

    def _into_file(self, descriptor: Descriptor, path: Path) -> None:
        with space_checked(str(path)):
            super()._into_file(descriptor, path)

    def _into_store(self, store: Store, descriptor: Descriptor) -> None:
        for _ in range(download.READS):
            with store.writer(descriptor.media_type) as out:
                self.read(descriptor, out.write)
                if out.digest == descriptor.digest:
                    out.commit(descriptor.media_type)
                    return
                found = out.digest
        raise self.other_bytes(descriptor, found)
