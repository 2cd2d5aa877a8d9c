"""Nodes that share nothing but a store, stores that count and wait, a cache before one."""

from __future__ import annotations

import hashlib
import random
import threading
from pathlib import Path

import msgspec

from perdure.execution.images.library import ImageLibrary
from perdure.execution.registry.contract import RemoteStore
from perdure.execution.snapshots import layers
from perdure.execution.snapshots.cache import LIMIT_BYTES, CachedLayer, FrameCache
from perdure.execution.snapshots.layers import FRAME_BLOCKS
from perdure.execution.snapshots.store import Store
from perdure.execution.snapshots.stores import open_store
from perdure.execution.snapshots.stores.folder import FolderStore
from perdure.formats.blockmap import BLOCK, LAYER, MEMORY, NO_BASE, Run
from perdure.formats.manifest import Descriptor
from perdure.testing.snapshots import BLOCKS, Bench

DEADLINE_S = 20.0


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


class Held(Counting):
    """A store whose reads wait while ``gate`` is closed, and fail as they are told."""

    def __init__(self, inner: RemoteStore) -> None:
        super().__init__(inner)
        self.gate = threading.Event()
        self.gate.set()
        self.reached = threading.Semaphore(0)
        self.failures: list[BaseException] = []

    def read(self, descriptor: Descriptor, offset: int, length: int) -> bytes:
        self.reached.release()
        assert self.gate.wait(DEADLINE_S)
        if self.failures:
            raise self.failures.pop()
        return super().read(descriptor, offset, length)


class Shelf:
    """A folder with layers, and a cache before it."""

    def __init__(self, root: Path, limit_bytes: int = 1 << 30) -> None:
        self.root = root
        self.folder = FolderStore(root / "remote")
        self.remote = Held(self.folder)
        self.limit_bytes = limit_bytes
        self.cache = self.opened()

    def opened(self) -> FrameCache:
        """Another cache over the same folder, as of another process."""
        return FrameCache(self.root / "cache", limit_bytes=self.limit_bytes, connect=lambda url: self.remote)

    def settle(self) -> None:
        """What the cache does after a frame has come: the limit, the record. Then as after a restart of the node."""
        self.cache._pool.shutdown(wait=True)
        self.cache.close()
        self.cache = self.opened()

    def layer(self, seed: int, frames: int = 8) -> tuple[Descriptor, bytes]:
        """A layer of noise; its content."""
        content = random.Random(seed).randbytes(frames * FRAME_BLOCKS * BLOCK)
        store = Store(self.root / "remote")
        runs = [Run(0, frames * FRAME_BLOCKS, LAYER, 0)]
        with store.writing():
            made = layers.write(store, runs, [content], kind=MEMORY, blocks=1 << 20, base=NO_BASE)
        assert made is not None
        return made, content

    def open(self, descriptor: Descriptor) -> CachedLayer:
        return self.cache.open(descriptor, self.folder.url)

    def path(self, descriptor: Descriptor) -> Path:
        return self.root / "cache" / descriptor.digest.removeprefix("sha256:")

    def record(self, descriptor: Descriptor) -> Path:
        path = self.path(descriptor)
        return path.with_name(path.name + ".present")


def frame_of(content: bytes, number: int) -> bytes:
    """Of a layer of ``Shelf``."""
    size = FRAME_BLOCKS * BLOCK
    return content[number * size : (number + 1) * size]
