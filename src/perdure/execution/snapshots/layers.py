"""Layers as files: writing one, opening one, opening and verifying a chain of them (docs/formats/layer.md)."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import zstandard

from perdure.errors import NotFound, SnapshotInvalid
from perdure.execution.snapshots.store import Store
from perdure.formats import blockmap, seekable
from perdure.formats.blockmap import BLOCK, ROLE_LAYER, BlockMap, Run
from perdure.formats.manifest import DISK_LAYER, MEMORY_LAYER, Descriptor
from perdure.formats.seekable import Frame

MAP_MAGIC = 0x184D2A5C  # of the skippable frame that holds the block map
# Measured on a guest's memory (53 MB that are not zeros): 64 KiB frames at level 3 take 14.3 MB, frames of 1 MiB
# 13.8 MB, level 1 14.9 MB. A fault waits for a whole frame, so the smallest of nearly equal sizes is the best.
FRAME_BLOCKS = 16
LEVEL = 3
KIND_NAMES = {blockmap.MEMORY: "memory", blockmap.DISK: "disk"}
_MEDIA_TYPES = {blockmap.MEMORY: MEMORY_LAYER, blockmap.DISK: DISK_LAYER}


def write(
    store: Store, runs: Sequence[Run], data: Iterable[bytes], *, kind: int, blocks: int, base: bytes, workers: int = 0
) -> Descriptor | None:
    """Store a layer. ``data`` gives its packed blocks in order, in pieces of any whole number of blocks.

    ``runs`` is read only once ``data`` has ended, so that whoever makes the data may fill it meanwhile. No run: no
    layer is needed, and None is returned. Compresses on all cores (``workers`` limits them). Raises NoSpace; then
    nothing is left behind.
    """
    workers = workers or os.cpu_count() or 1
    frames: list[Frame] = []
    with store.writer(f"a {KIND_NAMES[kind]} layer") as out, ThreadPoolExecutor(workers) as pool:

        def put(data: bytes, size: int, checksum: int) -> None:
            frames.append(Frame(out.size, len(data), size, checksum))
            out.write(data)

        pending: deque[tuple[Future[bytes], int]] = deque()
        for frame in _frames(data, FRAME_BLOCKS * BLOCK):
            pending.append((pool.submit(compressed, frame), len(frame)))
            if len(pending) > 4 * workers:
                done, size = pending.popleft()
                put(done.result(), size, seekable.content_checksum(done.result()))
        for done, size in pending:
            put(done.result(), size, seekable.content_checksum(done.result()))
        if not runs:
            return None
        index = blockmap.encode(blockmap.joined(runs), kind=kind, role=ROLE_LAYER, blocks=blocks, layers=1, base=base)
        put(seekable.skippable(MAP_MAGIC, index), 0, seekable.EMPTY_CHECKSUM)
        out.write(seekable.encode_table(frames))
        return out.commit(_MEDIA_TYPES[kind])


def compressed(frame: bytes) -> bytes:
    """One frame of a layer."""
    return zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).compress(frame)


def _frames(data: Iterable[bytes], size: int) -> Iterator[bytes]:
    held = bytearray()
    for piece in data:
        held += piece
        while len(held) >= size:
            yield bytes(held[:size])
            del held[:size]
    if held:
        yield bytes(held)


class Layer:
    """An open layer: its map, its frames, and their contents. A context manager.

    ``starts``: the first packed block of each frame, and the number of packed blocks at the end. Here all frames are
    in the file at ``path``; ``cache.CachedLayer`` brings them there when they are wanted. ``frame`` is for one thread
    at a time, the rest for any.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb", buffering=0)
        try:
            self._read_index()
        except SnapshotInvalid as error:
            self.close()
            raise SnapshotInvalid(f"layer {path}: {error.message}", hint=error.hint, layer=path.name) from None
        except BaseException:
            self.close()
            raise
        self._decompressor = zstandard.ZstdDecompressor()

    def __enter__(self) -> Layer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    @property
    def partial(self) -> bool:
        """Whether frames are missing from the file at ``path``."""
        return False

    def present(self, number: int) -> bool:
        """Whether the frame is in the file at ``path``, at its own offset."""
        return True

    def fetch(self, numbers: Iterable[int]) -> None:
        """Bring these frames into the file. Raises Unavailable, NotFound, NoRights, SnapshotInvalid, NoSpace."""

    def _read_index(self) -> None:
        file = self._file.fileno()
        size = os.fstat(file).st_size
        end = os.pread(file, seekable.FOOTER.size, max(0, size - seekable.FOOTER.size))
        length = seekable.table_length(end)
        if length > size:
            raise SnapshotInvalid("its seek table is longer than the file: truncated")
        frames = seekable.decode_table(os.pread(file, length, size - length), size)
        if not frames or frames[-1].size != 0:
            raise SnapshotInvalid("it has no block map: a seekable zstd file, but not a layer")
        place = frames.pop()
        held = os.pread(file, place.compressed, place.offset)
        if seekable.SKIPPABLE.size > len(held) or seekable.SKIPPABLE.unpack_from(held) != (MAP_MAGIC, len(held) - 8):
            raise SnapshotInvalid("it has no block map: a seekable zstd file, but not a layer")
        self.map: BlockMap = blockmap.decode(held[seekable.SKIPPABLE.size :])
        if self.map.role != ROLE_LAYER:
            raise SnapshotInvalid("it carries a flattened map, not its own")
        self.frames: list[Frame] = frames
        self.starts = [0]
        for number, frame in enumerate(frames):
            if not 0 < frame.size <= seekable.FRAME_BYTES_MAX or frame.size % BLOCK or frame.compressed < 4:
                raise SnapshotInvalid(f"frame {number} has a size that no frame of a layer has", frame=number)
            self.starts.append(self.starts[-1] + frame.size // BLOCK)
        if self.starts[-1] != self.map.packed:
            raise SnapshotInvalid(f"its frames hold {self.starts[-1]} blocks, its map names {self.map.packed}")

    def frame(self, number: int) -> bytes:
        """The content of a frame, verified. Raises SnapshotInvalid that names layer and frame."""
        entry = self.frames[number]
        held = os.pread(self._file.fileno(), entry.compressed, entry.offset)
        try:
            if len(held) != entry.compressed:
                raise SnapshotInvalid("the file ends within it")
            return seekable.decompress(self._decompressor, held, entry.size, entry.checksum)
        except SnapshotInvalid as error:
            raise SnapshotInvalid(
                f"layer {self.path}, frame {number}: {error.message}", layer=self.path.name, frame=number
            ) from None


def open_layer(store: Store, descriptor: Descriptor) -> Layer:
    """A layer, verified, wherever its bytes are: in the store, or beyond this machine, where the store notes it.

    Of one beyond this machine only map and seek table are verified here, and each frame as it comes.
    """
    if not store.blob_path(descriptor.digest).exists() and store.place(descriptor):
        return open_away(store, descriptor)
    return Layer(store.verified(descriptor))


def open_away(store: Store, descriptor: Descriptor) -> Layer:
    """The layer as it is read from beyond this machine, whether or not it is here too. Raises NotFound (no note says
    where it is), and as above."""
    url = store.place(descriptor)
    if not url or store.elsewhere is None:
        where = f", it is in {url}" if url else ", and nothing notes where else it is"
        raise NotFound(f"layer {descriptor.digest} is not in the store {store.folder}{where}")
    return store.elsewhere.open(descriptor, url)


def open_chain(store: Store, descriptors: Sequence[Descriptor], *, kind: int, blocks: int, base: bytes) -> list[Layer]:
    """Open and verify layers, oldest first, each a difference to the one before it and the first one to ``base``."""
    opened: list[Layer] = []
    try:
        for descriptor in descriptors:
            layer = open_layer(store, descriptor)
            opened.append(layer)
            held = layer.map
            if held.kind != kind or held.blocks != blocks:
                raise SnapshotInvalid(
                    f"layer {layer.path} is for {KIND_NAMES[held.kind]} of {held.blocks} blocks, "
                    f"not {KIND_NAMES[kind]} of {blocks}",
                    layer=layer.path.name,
                )
            if held.base != base:
                raise SnapshotInvalid(
                    f"layer {layer.path} is a difference to {held.base.hex()}, not to {base.hex()}: wrong base",
                    hint="The template or a layer below it was replaced. Restore an older snapshot.",
                    layer=layer.path.name,
                )
            base = bytes.fromhex(layer.path.name)
    except BaseException:
        close_all(opened)
        raise
    return opened


def close_all(layers: Iterable[Layer]) -> None:
    for layer in layers:
        layer.close()
