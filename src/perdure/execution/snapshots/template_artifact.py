"""A template as an artifact of its own, so that snapshots over it restore on another machine (docs/formats/remote.md).

Its memory is one layer over zeros: guests are mostly zeros and compress well. The map goes as it is, because the
digest of the content covers its bytes, and another zstd would pack the same runs differently.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import zstandard

from perdure.errors import NotFound, SnapshotInvalid
from perdure.execution.registry.contract import checked
from perdure.execution.registry.upload import Parcel
from perdure.execution.snapshots import layers, templates
from perdure.execution.snapshots.diskspace import space_checked
from perdure.execution.snapshots.layers import Layer
from perdure.execution.snapshots.store import Store
from perdure.execution.snapshots.stores.download import Download
from perdure.execution.snapshots.templates import Template
from perdure.formats import artifact, blockmap, seekable
from perdure.formats.artifact import TEMPLATE, TEMPLATE_CONFIG, Artifact
from perdure.formats.blockmap import BLOCK, LAYER, MEMORY, NO_BASE, Run
from perdure.formats.manifest import MANIFEST, MEMORY_LAYER, MEMORY_MAP, STATE, Descriptor
from perdure.linux import durable

STATE_BYTES_MAX = 64 << 20
_STEP = 256  # blocks read at a time


def tag_of(name: str, digest: str) -> str:
    """What names it in every store. The digest is part of it: two machines boot one NAME to different contents."""
    return f"template-{templates.adopted_name(name, digest)}"


def parcel(template: Template) -> Parcel:
    """The template, packed. It is packed once, and kept packed beside its memory. Raises SnapshotInvalid, NoSpace."""
    tag = tag_of(template.name, template.digest)
    folder = template.memory.with_name("packed")
    with _alone(template.memory.with_name("packed.lock")):
        try:
            return _packed(Store(folder), tag)
        except (NotFound, SnapshotInvalid):
            shutil.rmtree(folder)  # not yet, or damaged
        store = Store(folder)
        with store.writing():
            _pack(store, template, tag)
        return _packed(store, tag)


def _packed(store: Store, tag: str) -> Parcel:
    """Raises NotFound, SnapshotInvalid."""
    digest = store.tags().get(tag, "")
    if not digest:
        raise NotFound(f"{store.folder} holds no {tag}")
    manifest = store.blob_path(digest).read_bytes() if store.blob_path(digest).exists() else b""
    held = artifact.decode(checked(digest, manifest), TEMPLATE)
    return Parcel(tag, manifest, [(blob, store.verified(blob)) for blob in (held.config, *held.layers)])


def _pack(store: Store, template: Template, tag: str) -> None:
    runs = template.runs()
    packed, named = 0, []
    for run in runs:
        named.append(Run(run.first, run.length, LAYER, packed))
        packed += run.length
    blocks = template.size // BLOCK
    memory = layers.write(store, named, _contents(template, runs), kind=MEMORY, blocks=blocks, base=NO_BASE)
    state = zstandard.ZstdCompressor(level=9, write_checksum=True).compress(template.state.read_bytes())
    blobs = [
        *([] if memory is None else [memory]),
        store.add(template.memory.with_name("map").read_bytes(), MEMORY_MAP),
        store.add(state, STATE),
    ]
    config = store.add(template.memory.with_name("template.json").read_bytes(), TEMPLATE_CONFIG)
    manifest = artifact.encode(Artifact(kind=TEMPLATE, config=config, layers=blobs))
    store.tag(tag, store.add(manifest, MANIFEST))


def _contents(template: Template, runs: list[Run]) -> Iterator[bytes]:
    with template.memory.open("rb", buffering=0) as file:
        for run in runs:
            for first in range(run.first, run.first + run.length, _STEP):
                count = min(_STEP, run.first + run.length - first)
                yield os.pread(file.fileno(), count * BLOCK, first * BLOCK)


def fetch(folder: Path, name: str, digest: str, download: Download) -> Template:
    """The template of this content in ``home.templates``; brought there if it is not.

    Raises NotFound (the store has none), SnapshotInvalid (it is not what was made), NoSpace, and what the store raises.
    """
    found = _present(folder, name, digest)
    if found is not None:
        return found
    target = templates.adopted_name(name, digest)
    with space_checked(str(folder / target)), _alone(folder / f"{target}.lock"):
        found = _present(folder, name, digest)  # somebody else was faster
        if found is not None:
            return found
        building = folder / f"{target}.new"
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(mode=0o700, parents=True)
        try:
            _unpack(building, target, digest, download)
            if templates.load(folder, building.name).digest != digest:
                raise SnapshotInvalid(f"the store's template {target} has another content than its snapshots")
            for path in (*building.iterdir(), building):
                durable.sync(path)
            shutil.rmtree(folder / target, ignore_errors=True)  # a damaged one
            building.rename(folder / target)
            durable.sync(folder)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        return templates.load(folder, target)


def _present(folder: Path, name: str, digest: str) -> Template | None:
    try:
        found = templates.load(folder, name, digest)
    except (NotFound, SnapshotInvalid):
        return None
    return found if found.digest == digest else None


def _unpack(building: Path, target: str, digest: str, download: Download) -> None:
    held = artifact.decode(download.remote.manifest(f"template-{target}"), TEMPLATE)
    memory = held.all(MEMORY_LAYER)
    parts = [held.config, held.one(MEMORY_MAP), held.one(STATE), *memory]
    download.expect(parts)
    (building / "template.json").write_bytes(download.small(held.config))
    (building / "map").write_bytes(download.small(held.one(MEMORY_MAP)))
    (building / "state").write_bytes(_state(download, held.one(STATE)))
    flat = blockmap.decode((building / "map").read_bytes())
    with (building / "memory").open("xb", buffering=0) as file:
        file.truncate(flat.blocks * BLOCK)
        if memory:
            packed = building / "packed-memory"
            download.into_files([(memory[0], packed)])
            with Layer(packed) as layer:
                if layer.map.base != NO_BASE or layer.map.blocks != flat.blocks:
                    raise SnapshotInvalid(f"the store's template {target} has the memory of something else")
                _write_blocks(file.fileno(), layer)
            packed.unlink()


def _write_blocks(file: int, layer: Layer) -> None:
    places = (
        block for run in layer.map.runs if run.source == LAYER for block in range(run.first, run.first + run.length)
    )
    for number in range(len(layer.frames)):
        content = layer.frame(number)
        first = count = 0
        for at in range(0, len(content), BLOCK):  # neighbours in memory are written at once
            block = next(places)
            if count and block == first + count:
                count += 1
                continue
            _write(file, content[at - count * BLOCK : at], first)
            first, count = block, 1
        _write(file, content[len(content) - count * BLOCK :], first)


def _write(file: int, data: bytes, first: int) -> None:
    view, place = memoryview(data), first * BLOCK
    while view:
        written = os.pwrite(file, view, place)
        view, place = view[written:], place + written


def _state(download: Download, descriptor: Descriptor) -> bytes:
    data = download.small(descriptor)
    try:
        size = zstandard.frame_content_size(data)
        if not 0 < size <= STATE_BYTES_MAX:
            raise SnapshotInvalid(f"the template's device state claims to be {size} bytes")
        return seekable.decompress(zstandard.ZstdDecompressor(), data, size, seekable.content_checksum(data))
    except zstandard.ZstdError as error:
        raise SnapshotInvalid(f"the template's device state does not decompress: {error}") from None


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
