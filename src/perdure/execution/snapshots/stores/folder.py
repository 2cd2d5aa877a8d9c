"""A folder in the OCI image layout, such as one on a shared file system: ``/PATH`` or ``file:///PATH``."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from perdure.errors import NoRights, NotFound, PerdureError, SnapshotInvalid, Unavailable
from perdure.execution.registry.contract import check_tag, checked
from perdure.execution.snapshots.index import TAG
from perdure.execution.snapshots.store import Store
from perdure.formats.manifest import LIMIT_BYTES, Descriptor, check_digest

CHUNK_BYTES = 1 << 20


class FolderStore:
    """Written through the same machinery as the store of a node; several machines may write into one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._guard = threading.Lock()
        self._opened: Store | None = None

    @property
    def url(self) -> str:
        return self.folder.as_uri()

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
                f"{self.url}: blob {descriptor.digest} is truncated: {offset + len(data)} of {descriptor.size} bytes"
            )
        return data

    def put(self, descriptor: Descriptor, source: Path) -> None:
        if self.has(descriptor):
            return
        with self._told(), source.open("rb") as file, self._store().writer(descriptor.media_type) as out:
            while data := file.read(CHUNK_BYTES):
                out.write(data)
            if out.digest != descriptor.digest:
                raise SnapshotInvalid(f"{source} does not have the digest {descriptor.digest}: it was changed")
            out.commit(descriptor.media_type)

    def tag(self, name: str, manifest: bytes, descriptor: Descriptor) -> None:
        check_tag(name)
        with self._told():
            store = self._store()
            with store.writing():
                store.add(checked(descriptor.digest, manifest), descriptor.media_type)
                store.tag(name, descriptor)

    def manifest(self, name: str) -> bytes:
        digest = name if name.startswith("sha256:") else self._tagged().get(check_tag(name), "")
        if not digest:
            raise NotFound(f"{self.url} has no tag {name}")
        with self._told():
            try:
                with self._blob(digest).open("rb") as file:
                    data = file.read(LIMIT_BYTES + 1)
            except FileNotFoundError:
                raise NotFound(f"{self.url} has no manifest {digest}") from None
        if len(data) > LIMIT_BYTES:
            raise SnapshotInvalid(f"{self.url}: manifest {name} has more than {LIMIT_BYTES} bytes")
        return checked(digest, data)

    def tags(self) -> list[str]:
        return sorted(self._tagged())

    def close(self) -> None:
        pass

    def _store(self) -> Store:
        """Made when something is first written: a folder that is only read is left as it is."""
        with self._guard:
            if self._opened is None:
                self._opened = Store(self.folder)
            return self._opened

    def _tagged(self) -> dict[str, str]:
        with self._told():
            try:  # not through Store, which writes: the folder may be mounted read-only
                index = json.loads((self.folder / "index.json").read_bytes())
                tagged = [entry for entry in index["manifests"] if TAG in entry.get("annotations", {})]
                return {str(entry["annotations"][TAG]): str(entry["digest"]) for entry in tagged}
            except FileNotFoundError:
                return {}
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise SnapshotInvalid(f"{self.folder / 'index.json'} does not read: {error!r}") from None

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
            raise Unavailable(f"{self.url}: {error}", hint="Look after the folder, then try again.") from error
