"""A blob on its way into a store: written beside, then renamed to its digest."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from perdure.execution.snapshots import ingest
from perdure.execution.snapshots.diskspace import space_checked
from perdure.formats.manifest import Descriptor
from perdure.linux import durable

if TYPE_CHECKING:
    from perdure.execution.snapshots.store import Store


class BlobWriter:
    """One blob on its way into the store. Leaving the ``with`` block without ``commit`` removes it.

    Its file is locked, so no sweep takes it, however long it takes; one whose process dies is free.
    """

    def __init__(self, store: Store, what: str) -> None:
        self._store = store
        self._what = what
        self._hash = hashlib.sha256()
        self._size = 0
        with store.moment(what):
            self._path, self._file = ingest.begin(store.folder / "ingest")

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            self._file.close()
        except OSError:
            pass  # the disk is full: the bytes it still held are not wanted any more
        self._path.unlink(missing_ok=True)

    def write(self, data: bytes) -> None:
        with space_checked(self._what):
            self._file.write(data)
        self._hash.update(data)
        self._size += len(data)

    @property
    def size(self) -> int:
        return self._size

    @property
    def digest(self) -> str:
        """Of what was written so far."""
        return "sha256:" + self._hash.hexdigest()

    def commit(self, media_type: str) -> Descriptor:
        """Make it durable under its digest."""
        digest = self.digest
        with space_checked(self._what):
            self._file.flush()
            os.fsync(self._file.fileno())
            target = self._store.blob_path(digest)
            with self._store.moment(self._what):
                self._store.claims.add(digest)
                self._path.rename(target)
                durable.sync(target.parent)
        return Descriptor(media_type=media_type, digest=digest, size=self._size)
