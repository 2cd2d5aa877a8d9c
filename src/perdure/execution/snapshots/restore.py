"""From a stored snapshot to the files that its machine starts from. Blocking: run it in a thread.

Everything is verified here, before any VM runs: facts of this machine, digests, bases, maps. What remains for the
pager is the checksum of each frame as it is read.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import zstandard

from perdure.errors import SnapshotInvalid
from perdure.execution.snapshots import spaces
from perdure.execution.snapshots.diskspace import space_checked
from perdure.execution.snapshots.spaces import Space
from perdure.execution.snapshots.store import Store
from perdure.execution.snapshots.templates import Template, load
from perdure.formats import memorymap, seekable
from perdure.formats.blockmap import BASE, BLOCK, LAYER
from perdure.formats.manifest import Facts, Snapshot
from perdure.formats.memorymap import MemoryMap

STATE_BYTES_MAX = 64 << 20
MUST_AGREE = ("firecracker", "cpu_vendor", "cpu_family", "vcpus", "memory_mib")


@dataclass(frozen=True)
class RestoreFiles:
    """What the keeper's ``restore`` takes: the device state, the pager's memory map, the disk, and the template that
    the map refers to (the snapshot's own: by now another one may be newest).

    ``absent``: frames of the working set that are beyond this machine, (layer, number) each: the first to be fetched.
    """

    state: Path
    memory_map: Path
    overlay: Path
    template: Template
    absent: Sequence[tuple[int, int]] = ()


def prepare(
    store: Store, snapshot: Snapshot, *, folder: Path, templates: Path, facts: Facts, disk_file: Path | None = None
) -> RestoreFiles:
    """Make ``state``, ``memory.map`` and ``overlay`` in ``folder``, each complete or not at all.

    ``templates`` is ``home.templates``; ``facts`` are those of here (``Template.facts``). ``disk_file``: holds just
    what the snapshot's disk holds; it becomes the overlay, once all else is there. Raises SnapshotInvalid (anything
    that does not verify, with layer, frame and reason), NotFound, NoSpace.
    """
    check_facts(snapshot, facts)
    template = load(templates, snapshot.config.template, snapshot.config.template_digest)
    with (
        spaces.memory_of(store, snapshot, template) as memory,
        spaces.disk_of(store, snapshot, snapshot.disk.size) as disk,
    ):
        state = device_state(store, snapshot)
        hot = store.working_set(snapshot.digest) or template.working_set()
        held = memory_map(memory, template, hot)
        absent = memorymap.absent_hot(held)
        files = RestoreFiles(folder / "state", folder / "memory.map", folder / "overlay", template, absent)
        _write(files.state, lambda file: _write_all(file, state))
        _write(files.memory_map, lambda file: _write_all(file, memorymap.encode(held)))
        if disk_file is None or not _moved(disk_file, files.overlay):
            _write(files.overlay, lambda file: _write_sparse(file, disk))
    return files


def write_disk(store: Store, snapshot: Snapshot, target: Path) -> None:
    """The snapshot's disk alone. Raises SnapshotInvalid, NotFound, NoSpace."""
    with spaces.disk_of(store, snapshot, snapshot.disk.size) as disk:
        _write(target, lambda file: _write_sparse(file, disk))


def check_facts(snapshot: Snapshot, facts: Facts) -> None:
    """Raises SnapshotInvalid that names every fact in which here differs from where the snapshot was made.

    Kernel and guestd are not among them: they are in the snapshot's own template, which its digest pins, and a newer
    template does not concern a machine that was started from an older one.
    """
    made = msgspec.structs.asdict(snapshot.config.facts)
    here = msgspec.structs.asdict(facts)
    different = [f"{name} was {made[name]}, is {here[name]} here" for name in MUST_AGREE if made[name] != here[name]]
    if different:
        raise SnapshotInvalid(
            f"snapshot {snapshot.digest} does not fit this machine: {'; '.join(different)}",
            hint="Restore it where these are as they were, or start the sandbox again from its image.",
        )


def memory_map(memory: Space, template: Template, working_set: list[int]) -> MemoryMap:
    """What the pager needs to know of ``memory``: runs that cover every block and never cross a frame."""
    first, source, at = memorymap.column(), memorymap.column(), memorymap.column()
    frames: dict[tuple[int, int], int] = {}  # (layer, number of the frame in it) -> number in this map
    runs_of: list[list[int]] = []

    def put(block: int, kind: int, place: int = 0) -> None:
        first.append(block)
        source.append(kind)
        at.append(place)

    end = 0
    for run in memory.runs:
        if run.first > end:
            put(end, memorymap.ZERO)
        end = run.first + run.length
        if run.source == BASE:
            put(run.first, memorymap.TEMPLATE)
            continue
        layer = run.source - LAYER
        starts = memory.layers[layer].starts
        packed, packed_end = run.at, run.at + run.length
        number = bisect_right(starts, packed) - 1
        while packed < packed_end:
            frame = frames.setdefault((layer, number), len(frames))
            if frame == len(runs_of):
                runs_of.append([])
            runs_of[frame].append(len(first))
            put(run.first + packed - run.at, memorymap.FRAME + frame, packed - starts[number])
            number += 1
            packed = min(packed_end, starts[number])
    if end < memory.blocks:
        put(end, memorymap.ZERO)
    entries = [memory.layers[layer].frames[number] for layer, number in frames]
    frame_runs = memorymap.column([0])
    for runs in runs_of:
        frame_runs.append(frame_runs[-1] + len(runs))
    return MemoryMap(
        blocks=memory.blocks,
        template=str(template.memory),
        layers=[str(layer.path) for layer in memory.layers],
        partial=[layer.partial for layer in memory.layers],
        first=first,
        source=source,
        at=at,
        frame_layer=memorymap.column([layer for layer, _ in frames]),
        frame_offset=memorymap.wide_column([entry.offset for entry in entries]),
        frame_compressed=memorymap.column([entry.compressed for entry in entries]),
        frame_blocks=memorymap.column([entry.size // BLOCK for entry in entries]),
        frame_checksum=memorymap.column([entry.checksum for entry in entries]),
        frame_number=memorymap.column([number for _, number in frames]),
        frame_present=memorymap.column([memory.layers[layer].present(number) for layer, number in frames]),
        frame_runs=frame_runs,
        by_frame=memorymap.column([run for runs in runs_of for run in runs]),
        hot=memorymap.column([block for block in working_set if block < memory.blocks]),
    )


def device_state(store: Store, snapshot: Snapshot) -> bytes:
    """Firecracker's device state, verified. Raises NotFound, SnapshotInvalid."""
    data = store.read(snapshot.state)
    try:
        size = zstandard.frame_content_size(data)
        if not 0 < size <= STATE_BYTES_MAX:
            raise SnapshotInvalid(f"device state {snapshot.state.digest} claims to be {size} bytes")
        return seekable.decompress(zstandard.ZstdDecompressor(), data, size, seekable.content_checksum(data))
    except zstandard.ZstdError as error:
        raise SnapshotInvalid(f"device state {snapshot.state.digest} does not decompress: {error}") from None


def _write(path: Path, fill: Callable[[int], None]) -> None:
    """Not synced: after a crash of the host these files are made anew."""
    temporary = path.with_name(path.name + ".new")
    try:
        with space_checked(str(path)), temporary.open("wb", buffering=0) as file:
            fill(file.fileno())
            temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def _moved(source: Path, target: Path) -> bool:
    """False: it is gone, as others needed its room."""
    try:
        source.rename(target)
    except FileNotFoundError:
        return False
    return True


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _write_sparse(file: int, space: Space) -> None:
    os.ftruncate(file, space.blocks * BLOCK)
    for first, _, data in space.pieces(0, space.blocks):
        if data is not None:
            view, place = memoryview(data), first * BLOCK
            while view:
                written = os.pwrite(file, view, place)
                view, place = view[written:], place + written
