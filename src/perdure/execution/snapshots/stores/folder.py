"""A folder in the OCI image layout, such as one on a shared file system: ``/PATH`` or ``file:///PATH``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from perdure.errors import NoRights, NotFound, PerdureError, SnapshotInvalid, Unavailable
from perdure.execution.snapshots.store import Store
from perdure.execution.snapshots.stores.contract import CHUNK, check_tag, checked
from perdure.formats.manifest import LIMIT_BYTES, Descriptor, check_digest


class FolderStore:
    """Written through the same machinery as the store of a node; several machines may write into one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    @property
    def url(self) -> str:
        return f"file://{self.folder}"

    def has(self, descriptor: Descriptor) -> bool:
        with self._told():
            try:
                return self._blob(descriptor.digest).stat().st_size == descriptor.size
            except FileNotFoundError:
                return False

    def read(self, descriptor: Descriptor, offset: int, length: int) -> bytes:
        with self._told():
            try:
                file = os.open(self._blob(descriptor.digest), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                raise NotFound(f"{self.url} has no blob {descriptor.digest} ({descriptor.media_type})") from None
            try:
                data = os.pread(file, length, offset)
            finally:
                os.close(file)
        if len(data) != length:
            raise SnapshotInvalid(
                f"{self.url}: blob {descriptor.digest} ends at byte {offset + len(data)} of {descriptor.size}: truncated"
            )
        return data

    def put(self, descriptor: Descriptor, source: Path) -> None:
        if self.has(descriptor):
            return
        with self._told(), source.open("rb") as file:
            store = Store(self.folder)
            with store.writing(), store.writer(descriptor.media_type) as out:
                while data := file.read(CHUNK):
                    out.write(data)
                out.commit(descriptor.media_type)

    def tag(self, name: str, manifest: bytes, descriptor: Descriptor) -> None:
        check_tag(name)
        with self._told():
            store = Store(self.folder)
            with store.writing():
                store.add(manifest, descriptor.media_type)
                store.tag(name, descriptor)

    def manifest(self, name: str) -> bytes:
        digest = name if name.startswith("sha256:") else self._tagged().get(name, "")
        if not digest:
            raise NotFound(f"{self.url} has no tag {name}")
        with self._told():
            try:
                with self._blob(digest).open("rb") as file:
                    return checked(digest, file.read(LIMIT_BYTES + 1))
            except FileNotFoundError:
                raise NotFound(f"{self.url} has no manifest {digest}") from None

    def tags(self) -> list[str]:
        return sorted(self._tagged())

    def close(self) -> None:
        pass

    def _tagged(self) -> dict[str, str]:
        with self._told():
            if not (self.folder / "oci-layout").exists():
                raise NotFound(f"{self.folder} is not an OCI image layout (it has no file oci-layout)")
            return Store(self.folder).tags()

    def _blob(self, digest: str) -> Path:
        return self.folder / "blobs" / "sha256" / check_digest(digest)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except PerdureError:
            raise
        except PermissionError as error:
            raise NoRights(f"{self.url}: {error.strerror}: {error.filename}") from error
        except OSError as error:
            raise Unavailable(f"{self.url}: {error}") from error
