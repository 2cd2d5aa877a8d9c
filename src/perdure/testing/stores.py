"""Nodes that share nothing but a store, and a store that counts what is asked of it."""

from __future__ import annotations

import hashlib
import random
import threading
from pathlib import Path

import msgspec

from perdure.execution.images.library import ImageLibrary
from perdure.execution.snapshots.cache import LIMIT_BYTES, FrameCache
from perdure.execution.snapshots.store import Store
from perdure.execution.snapshots.stores import open_store
from perdure.execution.snapshots.stores.contract import RemoteStore
from perdure.formats.blockmap import BLOCK
from perdure.formats.manifest import Descriptor
from perdure.testing.snapshots import BLOCKS, Bench


class Counting:
    """A store as it is, and what was read of it: (hex digest, offset, length) of each range."""

    def __init__(self, inner: RemoteStore) -> None:
        self.inner = inner
        self.ranges: list[tuple[str, int, int]] = []
        self.puts: list[str] = []
        self._guard = threading.Lock()

    @property
    def url(self) -> str:
        return self.inner.url

    @property
    def bytes_read(self) -> int:
        return sum(length for _, _, length in self.ranges)

    def has(self, descriptor: Descriptor) -> bool:
        return self.inner.has(descriptor)

    def read(self, descriptor: Descriptor, offset: int, length: int) -> bytes:
        with self._guard:
            self.ranges.append((descriptor.digest.removeprefix("sha256:"), offset, length))
        return self.inner.read(descriptor, offset, length)

    def put(self, descriptor: Descriptor, source: Path) -> None:
        with self._guard:
            self.puts.append(descriptor.digest)
        self.inner.put(descriptor, source)

    def tag(self, name: str, manifest: bytes, descriptor: Descriptor) -> None:
        self.inner.tag(name, manifest, descriptor)

    def manifest(self, name: str) -> bytes:
        return self.inner.manifest(name)

    def tags(self) -> list[str]:
        return self.inner.tags()

    def close(self) -> None:
        self.inner.close()


class Node(Bench):
    """A bench with images and a cache of frames; ``counted``: the stores that it opened. A context manager."""

    def __init__(self, root: Path, blocks: int = BLOCKS, limit_bytes: int = LIMIT_BYTES) -> None:
        super().__init__(root, blocks)
        self.images = ImageLibrary(root / "images")
        self.counted: dict[str, Counting] = {}
        self.cache = FrameCache(root / "cache", limit_bytes=limit_bytes, connect=self.connect)
        self.store = Store(root / "store", self.cache)

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *exc: object) -> None:
        self.cache.close()

    def connect(self, url: str) -> RemoteStore:
        return self.counted.setdefault(url, Counting(open_store(url)))

    def image(self, content: bytes = b"squashfs") -> str:
        """The digest of an image in the library; to the code under test any bytes are a disk."""
        disk = "sha256:" + hashlib.sha256(content).hexdigest()
        document = msgspec.json.encode({"config": {}, "squashfs": disk, "version": 1}, order="sorted")
        digest = "sha256:" + hashlib.sha256(document).hexdigest()

        def fill(folder: Path) -> None:
            (folder / "config.json").write_bytes(document)
            (folder / "image.squashfs").write_bytes(content)

        self.images.adopt(digest, fill)
        return digest


def block(seed: int) -> bytes:
    """A block that does not compress; seed 0 is zeros."""
    return random.Random(seed).randbytes(BLOCK) if seed else bytes(BLOCK)
