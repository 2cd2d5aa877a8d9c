"""Where the bytes of a snapshot are. Blocking: run it in a thread."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path

from perdure.errors import PerdureError
from perdure.execution.snapshots import spaces, templates
from perdure.execution.snapshots.layers import Layer
from perdure.execution.snapshots.spaces import Space
from perdure.execution.snapshots.store import Store
from perdure.formats import manifest
from perdure.formats.blockmap import BASE, BLOCK, LAYER, Run
from perdure.formats.manifest import Snapshot
from perdure.host.progress import Progress, silent
from perdure.reports import Explanation, LayerUse, SpaceUse, WorkingSetUse

LAYERS_MAX = 8  # in one space; above it a snapshot is due for compaction
SCATTERED_MAX = 2  # times the working set's size that its frames may have,
SCATTERED_MIN_BYTES = 4 << 20  # where that is worth the work
DEAD_SHARE_MAX = 0.5  # of the bytes of its layers


def explain(store: Store, digest: str, *, templates_folder: Path, progress: Progress = silent) -> Explanation:
    """``templates_folder`` is ``home.templates``. Raises NotFound, SnapshotInvalid (something does not verify)."""
    with store.reading(digest):
        snapshot = store.get(digest)
        template = templates.load(templates_folder, snapshot.config.template, snapshot.config.template_digest)
        with (
            spaces.memory_of(store, snapshot, template) as memory,
            spaces.disk_of(store, snapshot, snapshot.disk.size) as disk,
        ):
            uses = [
                _space_use(memory, snapshot.memory.map.size, progress),
                _space_use(disk, snapshot.disk.map.size, progress),
            ]
            hot = _working_set_use(memory, store.working_set(digest))
        sizes = {blob.digest: blob.size for blob in _blobs(store, digest)}
        shared = _of_others(store, digest)
        return Explanation(
            digest=digest,
            memory=uses[0],
            disk=uses[1],
            state_bytes=snapshot.state.size,
            stored_bytes=snapshot.info().stored_bytes,
            total_bytes=sum(sizes.values()),
            own_bytes=sum(size for blob, size in sizes.items() if blob not in shared),
            working_set=hot,
            compaction_due=_is_due(uses, hot),
            memory_use=snapshot.config.memory_use,
        )


def due(store: Store, snapshot: Snapshot, *, templates_folder: Path) -> bool:
    """Compaction would help its restore (more than 8 layers in a space, or a working set that lies scattered: twice its
    size has to be read), or save bytes (more than half of them dead)."""
    if max(len(snapshot.memory.layers), len(snapshot.disk.layers)) > LAYERS_MAX:
        return True
    template = templates.load(templates_folder, snapshot.config.template, snapshot.config.template_digest)
    with (
        spaces.memory_of(store, snapshot, template) as memory,
        spaces.disk_of(store, snapshot, snapshot.disk.size) as disk,
    ):
        uses = [_space_use(memory), _space_use(disk)]
        return _is_due(uses, _working_set_use(memory, store.working_set(snapshot.digest)))


def _is_due(uses: Iterable[SpaceUse], hot: WorkingSetUse) -> bool:
    if hot.frame_bytes > max(SCATTERED_MIN_BYTES, SCATTERED_MAX * hot.layer_bytes):
        return True
    layers = [layer for use in uses for layer in use.layers]
    dead = sum(layer.dead_stored_bytes for layer in layers)
    live = sum(layer.live_stored_bytes for layer in layers)
    return any(len(use.layers) > LAYERS_MAX for use in uses) or dead > DEAD_SHARE_MAX * (dead + live)


def _space_use(space: Space, map_bytes: int = 0, progress: Progress | None = None) -> SpaceUse:
    """With ``progress`` the blocks are read as well, to find those that are there twice."""
    held = sum(run.length for run in space.runs)
    return SpaceUse(
        size_bytes=space.blocks * BLOCK,
        zero_bytes=(space.blocks - held) * BLOCK,
        template_bytes=sum(run.length for run in space.runs if run.source == BASE) * BLOCK,
        layers=[
            _layer_use(layer, [run for run in space.runs if run.source == LAYER + number])
            for number, layer in enumerate(space.layers)
        ],
        duplicate_bytes=_duplicates(space, progress) if progress is not None else 0,
        map_bytes=map_bytes,
    )


def _layer_use(layer: Layer, runs: Sequence[Run]) -> LayerUse:
    """What of a layer these runs name."""
    live = [0] * len(layer.frames)
    at = 0
    for first, end in sorted((run.at, run.at + run.length) for run in runs):
        at = max(at, first)  # several runs may name the same blocks
        while at < end:
            frame = bisect_right(layer.starts, at) - 1
            stop = min(end, layer.starts[frame + 1])
            live[frame] += stop - at
            at = stop
    stored = sum(frame.compressed for frame in layer.frames)
    live_stored = sum(
        frame.compressed * count * BLOCK // frame.size for frame, count in zip(layer.frames, live, strict=True)
    )
    return LayerUse(
        digest="sha256:" + layer.path.name,
        stored_bytes=layer.path.stat().st_size,
        frames=len(layer.frames),
        blocks=layer.map.packed,
        live_blocks=sum(live),
        live_bytes=sum(live) * BLOCK,
        live_stored_bytes=live_stored,
        dead_bytes=(layer.map.packed - sum(live)) * BLOCK,
        dead_stored_bytes=stored - live_stored,
    )


def _duplicates(space: Space, progress: Progress) -> int:
    seen: set[tuple[int, int]] = set()  # (layer, packed block): where several runs name one, it is stored once
    known: set[bytes] = set()
    again = 0
    for run in space.runs:
        progress("Reading", run.first, space.blocks)
        if run.source < LAYER:
            continue
        for first, end, data in space.pieces(run.first, run.first + run.length):
            for block in range(first, end):
                place = (run.source, run.at + block - run.first)
                if data is None or place in seen:
                    continue
                seen.add(place)
                found = hashlib.blake2b(data[(block - first) * BLOCK : (block - first + 1) * BLOCK]).digest()
                again += found in known
                known.add(found)
    return again * BLOCK


def _working_set_use(space: Space, hot: Sequence[int]) -> WorkingSetUse:
    firsts = [run.first for run in space.runs]
    zeros = template = in_layers = 0
    frames: set[tuple[int, int]] = set()
    for block in hot:
        number = bisect_right(firsts, block) - 1
        run = space.runs[number] if number >= 0 else None
        if run is None or block >= run.first + run.length:
            zeros += 1
        elif run.source == BASE:
            template += 1
        else:
            in_layers += 1
            starts = space.layers[run.source - LAYER].starts
            frames.add((run.source - LAYER, bisect_right(starts, run.at + block - run.first) - 1))
    entries = [space.layers[layer].frames[number] for layer, number in frames]
    return WorkingSetUse(
        blocks=len(hot),
        zero_bytes=zeros * BLOCK,
        template_bytes=template * BLOCK,
        layer_bytes=in_layers * BLOCK,
        frames=len(frames),
        frame_bytes=sum(entry.size for entry in entries),
        frame_stored_bytes=sum(entry.compressed for entry in entries),
        reads=sum((layer, number - 1) not in frames for layer, number in frames),
    )


def _blobs(store: Store, digest: str) -> list[manifest.Descriptor]:
    data = store.blob_path(digest).read_bytes()
    return [*manifest.blobs_of(data), manifest.Descriptor(media_type=manifest.MANIFEST, digest=digest, size=len(data))]


def _of_others(store: Store, digest: str) -> set[str]:
    needed = set()
    for other in {*store.digests(), *store.tags().values()} - {digest}:
        try:
            needed |= {blob.digest for blob in _blobs(store, other)}
        except (PerdureError, OSError):
            continue  # what it needs is not known
    return needed
