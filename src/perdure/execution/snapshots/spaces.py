"""A byte space (memory or disk) at the moment of a snapshot, read through its flattened map.

This is the plain reader that everything above the dotted line uses; the pager reads the same bytes through a memory
map file.
"""

from __future__ import annotations

import mmap
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path

from perdure.errors import InvalidValue, SnapshotInvalid
from perdure.execution.snapshots import layers
from perdure.execution.snapshots.layers import KIND_NAMES
from perdure.execution.snapshots.store import Store
from perdure.execution.snapshots.templates import Template
from perdure.formats import blockmap
from perdure.formats.blockmap import BASE, BLOCK, DISK, LAYER, MEMORY, NO_BASE, ROLE_FLAT, ZERO, Run
from perdure.formats.manifest import Descriptor, Snapshot
from perdure.formats.manifest import Space as SpaceRecord

_CACHED_FRAMES = 64


class Space:
    """``runs`` say where each block is; a block in no run is zeros. A context manager; not for several threads.

    ``base`` is the template's raw memory file, ``base_digest`` what the lowest layer is a difference to, and ``top``
    what the next layer will be a difference to. Opening verifies every layer.
    """

    def __init__(
        self,
        store: Store,
        descriptors: Sequence[Descriptor],
        runs: Sequence[Run],
        *,
        kind: int,
        blocks: int,
        base_digest: bytes = NO_BASE,
        base: Path | None = None,
    ) -> None:
        self.kind = kind
        self.blocks = blocks
        self.runs = runs
        self.descriptors = list(descriptors)
        self.base_digest = base_digest
        self.top = bytes.fromhex(descriptors[-1].digest.removeprefix("sha256:")) if descriptors else base_digest
        self._firsts = [run.first for run in runs]
        self._cache: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._base: mmap.mmap | None = None
        self.layers = layers.open_chain(store, descriptors, kind=kind, blocks=blocks, base=base_digest)
        try:
            for run in runs:
                if run.source >= LAYER and run.at + run.length > self.layers[run.source - LAYER].map.packed:
                    path = self.layers[run.source - LAYER].path
                    raise SnapshotInvalid(f"the {KIND_NAMES[kind]} map names blocks that layer {path} does not hold")
            if base is not None:
                with base.open("rb") as file:
                    self._base = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Space:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        layers.close_all(self.layers)
        if self._base is not None:
            self._base.close()

    def parts(self, first: int, end: int) -> Iterator[Run]:
        """Where blocks first..end are, without gaps: zeros are runs of ZERO."""
        seen = first
        for number in range(max(0, bisect_right(self._firsts, first) - 1), len(self.runs)):
            run = self.runs[number]
            if run.first >= end:
                break
            if run.first + run.length <= first:
                continue
            part = blockmap.cut(run, first, end)
            if part.first > seen:
                yield Run(seen, part.first - seen, ZERO)
            yield part
            seen = part.first + part.length
        if seen < end:
            yield Run(seen, end - seen, ZERO)

    def base(self, first: int, end: int) -> bytes:
        """The template's blocks first..end, whatever this space has there."""
        assert self._base is not None
        return self._base[first * BLOCK : end * BLOCK]

    def pieces(self, first: int, end: int) -> Iterator[tuple[int, int, bytes | None]]:
        """(first block, end block, content) over blocks first..end, without gaps; None: zeros.

        Raises SnapshotInvalid that names layer and frame; for layers beyond this machine Unavailable too.
        """
        self._fetch(first, end)
        for part in self.parts(first, end):
            if part.source == ZERO:
                yield part.first, part.first + part.length, None
            else:
                yield from self._content(part)

    def read(self, first: int, end: int) -> bytes:
        """The bytes of blocks first..end."""
        return b"".join(
            bytes((stop - at) * BLOCK) if data is None else data for at, stop, data in self.pieces(first, end)
        )

    def _fetch(self, first: int, end: int) -> None:
        """All frames that blocks first..end need and that are not here yet, at once instead of one after the other."""
        if not any(layer.partial for layer in self.layers):
            return
        wanted: dict[int, set[int]] = {}
        for number in range(max(0, bisect_right(self._firsts, first) - 1), len(self.runs)):
            run = self.runs[number]
            if run.first >= end:
                break
            if run.source >= LAYER and run.first + run.length > first:
                part = blockmap.cut(run, first, end)
                starts = self.layers[run.source - LAYER].starts
                low, high = bisect_right(starts, part.at) - 1, bisect_right(starts, part.at + part.length - 1)
                wanted.setdefault(run.source - LAYER, set()).update(range(low, high))
        for index, numbers in wanted.items():
            self.layers[index].fetch(numbers)

    def _content(self, run: Run) -> Iterator[tuple[int, int, bytes | None]]:
        if run.source == BASE:
            assert self._base is not None
            yield run.first, run.first + run.length, self._base[run.at * BLOCK : (run.at + run.length) * BLOCK]
            return
        index = run.source - LAYER
        starts = self.layers[index].starts
        block, at, end = run.first, run.at, run.at + run.length
        number = bisect_right(starts, at) - 1
        while at < end:
            stop = min(end, starts[number + 1])
            frame = self._frame(index, number)
            yield block, block + stop - at, frame[(at - starts[number]) * BLOCK : (stop - starts[number]) * BLOCK]
            block, at, number = block + stop - at, stop, number + 1

    def _frame(self, layer: int, number: int) -> bytes:
        key = (layer, number)
        held = self._cache.get(key)
        if held is None:
            held = self._cache[key] = self.layers[layer].frame(number)
            if len(self._cache) > _CACHED_FRAMES:
                self._cache.popitem(last=False)
        else:
            self._cache.move_to_end(key)
        return held


def memory_of(store: Store, snapshot: Snapshot | None, template: Template) -> Space:
    """The memory at ``snapshot``; None: at the template itself. Raises SnapshotInvalid, NotFound."""
    blocks = template.size // BLOCK
    base = bytes.fromhex(template.digest)
    if snapshot is None:
        runs: Sequence[Run] = template.runs()
        return Space(store, [], runs, kind=MEMORY, blocks=blocks, base_digest=base, base=template.memory)
    if snapshot.config.template_digest != template.digest:
        raise SnapshotInvalid(
            f"snapshot {snapshot.digest} was made over template {snapshot.config.template_digest}, "
            f"but {template.name} is {template.digest} now: wrong base",
            hint="The template was built again since. Bring the old one back, or start a new sandbox.",
        )
    if snapshot.memory.size != template.size:
        raise SnapshotInvalid(
            f"snapshot {snapshot.digest} has {snapshot.memory.size} bytes of memory, not {template.size}"
        )
    runs = _flat_map(store, snapshot.memory, MEMORY, base)
    return Space(
        store, snapshot.memory.layers, runs, kind=MEMORY, blocks=blocks, base_digest=base, base=template.memory
    )


def disk_of(store: Store, snapshot: Snapshot | None, size: int) -> Space:
    """The disk at ``snapshot``; None: ``size`` bytes of zeros. Raises SnapshotInvalid, NotFound."""
    if snapshot is None:
        return Space(store, [], [], kind=DISK, blocks=_blocks(size, "the disk"))
    runs = _flat_map(store, snapshot.disk, DISK, NO_BASE)
    return Space(store, snapshot.disk.layers, runs, kind=DISK, blocks=snapshot.disk.size // BLOCK)


def _flat_map(store: Store, record: SpaceRecord, kind: int, base: bytes) -> list[Run]:
    blocks = _blocks(record.size, f"the snapshot's {KIND_NAMES[kind]}")
    try:
        flat = blockmap.decode(store.read(record.map))
        if (flat.kind, flat.role, flat.blocks, flat.layers) != (kind, ROLE_FLAT, blocks, len(record.layers)):
            raise SnapshotInvalid("it is the map of something else")
        if flat.base != base or (kind == DISK and any(run.source == BASE for run in flat.runs)):
            raise SnapshotInvalid("it was made over another base")
    except SnapshotInvalid as error:
        raise SnapshotInvalid(f"map {record.map.digest}: {error.message}", hint=error.hint) from None
    return flat.runs


def _blocks(size: int, what: str) -> int:
    if size <= 0 or size % BLOCK:
        raise InvalidValue(f"{what} has {size} bytes, which is not a whole number of {BLOCK}-byte blocks")
    return size // BLOCK
