"""From the files of a stopped machine to a stored snapshot. Blocking: run it in a thread, above the dotted line.

No VM waits while this runs. What Firecracker wrote is more than what changed: through userfaultfd KVM also logs pages
that were only read, and the guest writes back what was there. So each block is compared with the parent's content.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import zstandard

from perdure.errors import InvalidValue, SnapshotInvalid
from perdure.execution.snapshots import layers, spaces
from perdure.execution.snapshots.collected import opened
from perdure.execution.snapshots.diskchanges import Ranges
from perdure.execution.snapshots.spaces import Space
from perdure.execution.snapshots.store import Store
from perdure.execution.snapshots.templates import Template, load
from perdure.formats import blockmap, manifest
from perdure.formats.blockmap import BLOCK, LAYER, MEMORY, NO_BASE, ROLE_FLAT, ZERO, Run
from perdure.formats.capturefile import CaptureFile
from perdure.formats.manifest import DISK_MAP, MEMORY_MAP, STATE, Config, Descriptor, Origin, Snapshot
from perdure.linux import sparse
from perdure.model import LogPosition, MemoryUse

_STEP = 1024  # blocks that are compared at a time
_ZERO_BLOCK = bytes(BLOCK)
TOUCHED_MAX = 16384  # blocks; what a machine has touched beyond that is more than it needs to go on

Piece = tuple[int, int, bytes | None]  # first block, end, content; None: zeros


def pack(
    store: Store,
    *,
    folder: Path,
    overlay: Path,
    changed: Ranges | None = None,
    parent: Snapshot | Template,
    templates: Path,
    sandbox_id: str,
    image_digest: str,
    position: LogPosition | None = None,
    pause_s: float = 0.0,
    working_set: Sequence[int] = (),
    exact: bool = False,
    origin: Origin | None = None,
    memory_use: MemoryUse | None = None,
) -> Snapshot:
    """Store what the machine is now beyond ``parent``, durable when this returns.

    ``folder`` holds Firecracker's ``state`` and a capture file ``memory``, ``overlay`` is the sandbox's disk; neither
    is changed. ``changed``: where the disk may differ from the parent's (``diskchanges``), and nothing else of
    ``overlay`` is looked at; None: it is not known. ``working_set``: the blocks that it touched first; it makes the
    next restore faster. ``exact``: it is what a pager recorded, and the capture tells the rest. ``memory_use``: what
    its guest told. Raises NoSpace, InvalidValue (files of another size), SnapshotInvalid (the parent or the capture
    file does not verify).
    """
    if isinstance(parent, Template):
        template, before = parent, None
    else:
        template, before = load(templates, parent.config.template, parent.config.template_digest), parent
    with store.writing():
        with spaces.memory_of(store, before, template) as memory:
            captured = opened(folder / "memory", memory.blocks)
            memory_map, memory_layers = _add(store, memory, _of_memory(captured, memory))
        disk_size = overlay.stat().st_size
        if before and disk_size != before.disk.size:
            raise InvalidValue(f"{overlay} has {disk_size} bytes where the snapshot before it has {before.disk.size}")
        # opened in any case: a parent that does not verify is no ground to end a machine on
        with spaces.disk_of(store, before, disk_size) as disk, overlay.open("rb", buffering=0) as file:
            if before and changed == []:
                disk_map, disk_layers = before.disk.map, before.disk.layers
            else:
                disk_map, disk_layers = _add(store, disk, _of_disk(file.fileno(), disk, changed))
        state = store.add(_compressed((folder / "state").read_bytes()), STATE)
        old = {descriptor.digest for descriptor in before.descriptors} if before else set()
        config = Config(
            version=manifest.VERSION,
            sandbox_id=sandbox_id,
            created=time.time(),
            template=template.name,
            template_digest=template.digest,
            # those of the machine: it was restored only where they agree (``restore.check_facts``)
            facts=before.config.facts if before else template.facts,
            image_digest=image_digest,
            memory_size=memory.blocks * BLOCK,
            disk_size=disk_size,
            parent=before.digest if before else None,
            position=position,
            memory_bytes=_new(old, [*memory_layers, memory_map]),
            disk_bytes=_new(old, [*disk_layers, disk_map]),
            state_bytes=_new(old, [state]),
            pause_s=pause_s,
            origin=origin,
            memory_use=memory_use,
        )
        snapshot = store.register(
            Snapshot(
                digest="",
                config=config,
                memory=manifest.Space(size=config.memory_size, layers=memory_layers, map=memory_map),
                disk=manifest.Space(size=config.disk_size, layers=disk_layers, map=disk_map),
                state=state,
            )
        )
    if working_set:
        hot = exact_working_set(working_set, captured.runs) if exact else working_set
        store.keep_working_set(snapshot.digest, hot)
        template.keep_working_set(hot)
    return snapshot


def exact_working_set(recorded: Sequence[int], captured: Sequence[Run]) -> list[int]:
    """The blocks that a machine touched since it was restored through a pager: those that its pager saw first, in that
    order, then the others.

    Behind a pager KVM logs every page that the guest touched, also those that it only read (they are mapped writable),
    and none that were only put in place for it. So what Firecracker captured is exactly the working set, while a pager
    sees the first touch of a frame only. After a long life that is much of the memory, and says little: then the
    pager's word stands alone.
    """
    if sum(run.length for run in captured) > TOUCHED_MAX:
        return list(recorded)
    touched = [block for run in captured for block in range(run.first, run.first + run.length)]
    known = set(touched)
    return list(dict.fromkeys([*(block for block in recorded if block in known), *touched]))


def _add(store: Store, before: Space, changed: Iterable[Piece]) -> tuple[Descriptor, list[Descriptor]]:
    """(flattened map, layers) of the space after ``changed`` was laid over it."""
    runs: list[Run] = []
    layer = layers.write(
        store, runs, _difference(changed, before, runs), kind=before.kind, blocks=before.blocks, base=before.top
    )
    chain = before.descriptors
    flat = before.runs
    if layer is not None:
        number = LAYER + len(chain)
        named = [run if run.source == ZERO else run._replace(source=number) for run in blockmap.joined(runs)]
        flat = blockmap.laid_over(flat, named)
        chain = [*chain, layer]
    data = blockmap.encode(
        flat, kind=before.kind, role=ROLE_FLAT, blocks=before.blocks, layers=len(chain), base=before.base_digest
    )
    return store.add(data, MEMORY_MAP if before.kind == MEMORY else DISK_MAP), chain


def _of_memory(captured: CaptureFile, before: Space) -> Iterator[Piece]:
    """What may differ from ``before``: what is the template's in both, or zeros in both, is not looked at."""
    if captured.base not in (NO_BASE, before.base_digest):
        raise SnapshotInvalid(
            f"the memory was captured over template {captured.base.hex()}, not over {before.base_digest.hex()}"
        )
    for whole in captured.runs:
        for run in whole.steps(_STEP):
            if run.source == LAYER:
                yield run.first, run.first + run.length, bytes(captured.content(run))
                continue
            for part in before.parts(run.first, run.first + run.length):
                if part.source != run.source:
                    end = part.first + part.length
                    yield part.first, end, None if run.source == ZERO else before.base(part.first, end)


def _of_disk(file: int, before: Space, changed: Ranges | None) -> Iterator[Piece]:
    """The same of a sparse file, in which a hole is zeros."""
    if changed is None:
        held = [(at // BLOCK, -(-(at + length) // BLOCK)) for at, length in sparse.extents(file)]
        changed = _united(held + [(run.first, run.first + run.length) for run in before.runs])
    for first, end in changed:
        for run in Run(first, end - first, LAYER).steps(_STEP):
            yield run.first, run.first + run.length, sparse.read(file, run.length * BLOCK, run.first * BLOCK)


def _united(ranges: Iterable[tuple[int, int]]) -> Ranges:
    out: Ranges = []
    for first, end in sorted(ranges):
        if out and first <= out[-1][1]:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((first, end))
    return out


def _difference(changed: Iterable[Piece], before: Space, runs: list[Run]) -> Iterator[bytes]:
    """The blocks of ``changed`` that differ from ``before`` and are not zeros; ``runs`` becomes their map."""
    packed = 0
    for first, end, new in changed:
        if new is None:
            new = bytes((end - first) * BLOCK)
        for low, high, old in before.pieces(first, end):
            place = (low - first) * BLOCK
            if old is None:
                old = bytes((high - low) * BLOCK)
            if new.startswith(old, place):  # compares without a copy
                continue
            begun = low  # blocks from here to the one that is looked at differ, and are not zeros
            for block in range(low, high + 1):
                at, place = (block - low) * BLOCK, (block - first) * BLOCK
                content = new[place : place + BLOCK]
                same = block < high and old.startswith(content, at)
                if block < high and not same and content != _ZERO_BLOCK:
                    continue
                if begun < block:
                    runs.append(Run(begun, block - begun, LAYER, packed))
                    packed += block - begun
                    yield new[(begun - first) * BLOCK : place]
                if block < high and not same:
                    runs.append(Run(block, 1, ZERO))
                begun = block + 1


def _compressed(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=9, write_checksum=True).compress(data)


def _new(old: set[str], descriptors: Iterable[Descriptor]) -> int:
    return sum(descriptor.size for descriptor in descriptors if descriptor.digest not in old)
