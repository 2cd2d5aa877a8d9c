"""A snapshot rewritten: each space as one layer over its base that holds what is live, in the order of first touch.

So a restore reads its working set in one piece, no chain grows without end, and what later snapshots replaced costs
nothing any more, once the older snapshots that still need it are gone. Blocking: run it in a thread.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from perdure.errors import SnapshotInvalid
from perdure.execution.snapshots import layers, spaces, templates
from perdure.execution.snapshots.care import content
from perdure.execution.snapshots.layers import KIND_NAMES
from perdure.execution.snapshots.spaces import Space
from perdure.execution.snapshots.store import Store
from perdure.execution.snapshots.templates import Template
from perdure.formats import blockmap, manifest
from perdure.formats.blockmap import BLOCK, LAYER, MEMORY, ROLE_FLAT, ZERO, Run
from perdure.formats.manifest import DISK_MAP, MEMORY_MAP, Descriptor, Snapshot
from perdure.host.progress import Progress, silent

_STEP = 256  # blocks handed on at a time
_ZERO_BLOCK = bytes(BLOCK)


def compact(store: Store, digest: str, *, templates_folder: Path, progress: Progress = silent) -> Snapshot:
    """Store the snapshot anew and register it; the old one stays, for the caller to remove once it names the new one.

    Content, position, parent and working set are the same; that its content is, is verified before it is registered.
    The same snapshot is returned where nothing would change. Raises NotFound, SnapshotInvalid, NoSpace; the store is
    then as it was.
    """
    with store.writing(), store.reading(digest):
        snapshot = store.get(digest)
        template = templates.load(templates_folder, snapshot.config.template, snapshot.config.template_digest)
        hot = store.working_set(digest)
        with spaces.memory_of(store, snapshot, template) as now, spaces.memory_of(store, None, template) as below:
            memory = _rewritten(store, now, below, hot, template, progress)
        size = snapshot.disk.size
        with spaces.disk_of(store, snapshot, size) as now, spaces.disk_of(store, None, size) as below:
            disk = _rewritten(store, now, below, [], None, progress)
        if (memory, disk) == (snapshot.memory, snapshot.disk):
            return snapshot
        config = msgspec.structs.replace(
            snapshot.config,
            memory_bytes=_size(memory),
            disk_bytes=_size(disk),
            state_bytes=snapshot.state.size,
            replaces=[*snapshot.config.replaces, digest],
        )
        made = store.register(msgspec.structs.replace(snapshot, config=config, memory=memory, disk=disk))
        if hot:
            store.keep_working_set(made.digest, hot)
        progress("Compacting", 1, 1)
        return made


def _size(space: manifest.Space) -> int:
    return sum(blob.size for blob in (*space.layers, space.map))


def _rewritten(
    store: Store, now: Space, below: Space, hot: Sequence[int], template: Template | None, progress: Progress
) -> manifest.Space:
    """The space in one layer over ``below``, verified."""
    what = f"Compacting {KIND_NAMES[now.kind]}"
    stored, zeros = _wanted(now, below, progress, what)
    runs: list[Run] = []
    layer = layers.write(
        store,
        runs,
        _data(now, stored, zeros, hot, runs),
        kind=now.kind,
        blocks=now.blocks,
        base=now.base_digest,
    )
    named = [run if run.source == ZERO else run._replace(source=LAYER) for run in blockmap.joined(runs)]
    flat = blockmap.laid_over(below.runs, named)
    chain: list[Descriptor] = [layer] if layer is not None else []
    encoded = blockmap.encode(
        flat, kind=now.kind, role=ROLE_FLAT, blocks=now.blocks, layers=len(chain), base=now.base_digest
    )
    made = store.add(encoded, MEMORY_MAP if now.kind == MEMORY else DISK_MAP)
    with Space(
        store,
        chain,
        blockmap.decode(store.read(made)).runs,
        kind=now.kind,
        blocks=now.blocks,
        base_digest=now.base_digest,
        base=template.memory if template else None,
    ) as after:
        if content.digest(after, progress, "Comparing") != content.digest(now, progress, "Comparing"):
            raise SnapshotInvalid(
                f"the compacted {KIND_NAMES[now.kind]} does not have the content of the one before it",
                hint="Nothing was changed. `fcrun snapshot verify` shows whether the snapshot is sound.",
            )
    return manifest.Space(size=now.blocks * BLOCK, layers=chain, map=made)


def _wanted(now: Space, below: Space, progress: Progress, what: str) -> tuple[list[int], list[int]]:
    """(blocks to store, blocks that became zeros) where the space differs from ``below``."""
    stored: list[int] = []
    zeros: list[int] = []
    covered = 0
    for run in [*now.runs, Run(now.blocks, 0, ZERO)]:
        for first, end, old in below.pieces(covered, run.first):
            if old is not None:
                zeros += range(first, end)
        covered = run.first + run.length
        progress(what, min(covered, now.blocks - 1), now.blocks)
        if run.source < LAYER:
            continue
        for first, end, new in now.pieces(run.first, covered):
            assert new is not None
            before = below.read(first, end)
            for block in range(first, end):
                place = slice((block - first) * BLOCK, (block - first + 1) * BLOCK)
                if new[place] == before[place]:
                    continue
                (zeros if new[place] == _ZERO_BLOCK else stored).append(block)
    return stored, zeros


def _data(now: Space, stored: list[int], zeros: list[int], hot: Sequence[int], runs: list[Run]) -> Iterator[bytes]:
    """The blocks as they are packed: the hot ones in their order, then the others by address; the same content once.

    ``runs`` becomes their map.
    """
    rest = set(stored)
    first = [block for block in dict.fromkeys(hot) if block in rest]
    held = {block: now.read(block, block + 1) for block in sorted(first)}  # by address: each frame is read once
    rest.difference_update(first)
    places: dict[bytes, int] = {}
    piece: list[bytes] = []
    for block in (*first, *sorted(rest)):
        data = held.pop(block, None) or now.read(block, block + 1)
        digest = hashlib.sha256(data).digest()
        if digest not in places:
            places[digest] = len(places)
            piece.append(data)
            if len(piece) == _STEP:
                yield b"".join(piece)
                piece.clear()
        runs.append(Run(block, 1, LAYER, places[digest]))
    yield b"".join(piece)
    runs += (Run(block, 1, ZERO) for block in zeros)
    runs.sort()
