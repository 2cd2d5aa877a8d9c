"""A snapshot that was cut off, changed, put together wrongly or made by a newer version never reaches a machine.

Two kinds of damage: to a file (its digest no longer fits), and, harder, by somebody who makes all digests fit again
(``forged``), so that what refuses it are the parsers alone.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perdure.errors import NotFound, PerdureError, SnapshotInvalid
from perdure.execution.snapshots import layers, restore, spaces, templates
from perdure.execution.snapshots.care import compact, verify
from perdure.execution.snapshots.layers import Layer
from perdure.formats import blockmap, manifest, seekable
from perdure.formats.blockmap import BLOCK, LAYER, MEMORY, ROLE_LAYER, ZERO, Run
from perdure.formats.manifest import Descriptor, Snapshot
from perdure.testing.snapshots import BLOCKS, Bench, facts

PARTS = ("memory layer", "memory map", "disk layer", "disk map", "state")


def text_block(seed: int) -> bytes:
    """One that compresses well: layers of it are small, so that every byte of them can be tried."""
    return (f"block {seed} ".encode() * 600)[:BLOCK]


DISK = b"".join(text_block(number) for number in range(20))


class World:
    """A snapshot of two layers in each space, and a compacted one of the same content."""

    def __init__(self, root: Path) -> None:
        self.bench = Bench(root)
        template = self.bench.template(b"".join(text_block(number % 3) for number in range(BLOCKS)))
        first = self.bench.capture(template, {number: text_block(number + 10) for number in range(20)}, DISK)
        self.snapshot = self.bench.capture(
            first, {3: text_block(99), 4: bytes(BLOCK)}, DISK[BLOCK:] + DISK[:BLOCK], working_set=(9, 3, 200)
        )
        self.compacted = compact.compact(self.bench.store, self.snapshot.digest, templates_folder=self.bench.templates)
        self.target = root / "restored"
        self.target.mkdir()

    def restore(self, snapshot: Snapshot) -> restore.RestoreFiles:
        return restore.prepare(
            self.bench.store, snapshot, folder=self.target, templates=self.bench.templates, facts=facts()
        )

    def refused(self, snapshot: Snapshot, match: str = ".", kind: type[PerdureError] = SnapshotInvalid) -> None:
        """It is refused with a reason, nothing is made for the machine, and verification finds it too."""
        with pytest.raises(kind, match=match):
            self.restore(self.bench.store.get(snapshot.digest))
        assert list(self.target.iterdir()) == []
        assert verify.snapshot(self.bench.store, snapshot.digest, templates=self.bench.templates).findings

    def memory(self, snapshot: Snapshot) -> bytes:
        with spaces.memory_of(self.bench.store, snapshot, templates.load(self.bench.templates, "warm")) as space:
            return space.read(0, BLOCKS)

    def blob(self, snapshot: Snapshot, part: str) -> Descriptor:
        return {
            "memory layer": snapshot.memory.layers[-1:],
            "memory map": [snapshot.memory.map],
            "disk layer": snapshot.disk.layers[-1:],
            "disk map": [snapshot.disk.map],
            "state": [snapshot.state],
        }[part][0]

    def forged(self, snapshot: Snapshot, part: str, data: bytes) -> Snapshot:
        """The snapshot with other bytes for one part, and every digest right."""
        old = self.blob(snapshot, part)
        new = self.bench.store.add(data, old.media_type)

        def swapped(space: manifest.Space) -> manifest.Space:
            return msgspec.structs.replace(
                space,
                layers=[new if layer == old else layer for layer in space.layers],
                map=new if space.map == old else space.map,
            )

        return self.bench.store.register(
            msgspec.structs.replace(
                snapshot,
                memory=swapped(snapshot.memory),
                disk=swapped(snapshot.disk),
                state=new if snapshot.state == old else snapshot.state,
            )
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Whoever changes it puts it back."""
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture
def changed(world: World) -> Iterator[Callable[[str, bytes | None], None]]:
    """Put other bytes (None: none) where a blob is; undone after the test."""
    kept: dict[Path, bytes] = {}

    def put(digest: str, data: bytes | None) -> None:
        path = world.bench.store.blob_path(digest)
        kept.setdefault(path, path.read_bytes())
        path.unlink()
        if data is not None:
            path.write_bytes(data)

    yield put
    for path, data in kept.items():
        path.write_bytes(data)


def lengths(size: int, borders: list[int]) -> list[int]:
    """Every border of a part, and a byte to either side, as far as they cut something off."""
    near = {border + step for border in borders for step in (-1, 0, 1)}
    return sorted(length for length in near | {0, 1, size // 2, size - 1} if 0 <= length < size)


def borders_of(path: Path) -> list[int]:
    """Where frames, block map (header, columns) and seek table (entries, footer) of a layer begin and end."""
    with Layer(path) as layer:
        ends = [frame.offset + frame.compressed for frame in layer.frames]
        place = ends[-1] if ends else 0
        size = path.stat().st_size
        table = size - seekable.SKIPPABLE.size - seekable.FOOTER.size - seekable.ENTRY.size * (len(ends) + 1)
        entries = [table + seekable.SKIPPABLE.size + seekable.ENTRY.size * number for number in range(len(ends) + 2)]
        return [*ends, place + 8, place + 8 + blockmap.HEADER.size, table, *entries, size - seekable.FOOTER.size, size]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("which", ["snapshot", "compacted"])
def test_a_truncation_at_every_boundary(
    world: World, changed: Callable[[str, bytes | None], None], part: str, which: str
) -> None:
    snapshot: Snapshot = getattr(world, which)
    blob = world.blob(snapshot, part)
    path = world.bench.store.blob_path(blob.digest)
    data = path.read_bytes()
    borders = borders_of(path) if "layer" in part else [4, 8, 20, 24, 56, blockmap.HEADER.size]
    for length in lengths(len(data), borders):
        changed(blob.digest, data[:length])
        world.refused(snapshot, "truncated")
    changed(blob.digest, None)
    world.refused(snapshot, path.name, NotFound)


@pytest.mark.parametrize("part", PARTS)
def test_a_truncation_with_all_digests_right(world: World, part: str) -> None:
    data = world.bench.store.blob_path(world.blob(world.compacted, part).digest).read_bytes()
    for length in range(0, len(data), 29):
        world.refused(world.forged(world.compacted, part, data[:length]))


def test_truncated_manifests_and_configs(world: World, changed: Callable[[str, bytes | None], None]) -> None:
    data = world.bench.store.blob_path(world.snapshot.digest).read_bytes()
    config = manifest.config_of(data)
    described = world.bench.store.blob_path(config.digest).read_bytes()
    for digest, whole in ((world.snapshot.digest, data), (config.digest, described)):
        for length in range(0, len(whole), 37):
            changed(digest, whole[:length])
            world.refused(world.snapshot, "damaged or changed|truncated")
        changed(digest, whole)
    for length in range(len(data)):
        with pytest.raises(SnapshotInvalid):
            manifest.decode(data[:length], described)
    for length in range(len(described)):
        with pytest.raises(SnapshotInvalid):
            manifest.decode(data, described[:length])


@pytest.mark.parametrize("part", PARTS)
def test_any_flipped_bit_in_a_header_is_refused(world: World, part: str) -> None:
    """All digests being right. The parsers alone have a test for every bit each, below."""
    data = world.bench.store.blob_path(world.blob(world.compacted, part).digest).read_bytes()
    for place in sorted({*range(0, min(64, len(data)), 3), *range(max(0, len(data) - 64), len(data), 3)}):
        forged = bytearray(data)
        forged[place] ^= 1 << place % 8
        made = world.forged(world.compacted, part, bytes(forged))
        found = verify.snapshot(world.bench.store, made.digest, templates=world.bench.templates).findings
        try:
            files = world.restore(made)
        except SnapshotInvalid:
            assert found
            continue
        # what a restore does not read itself is checked by the pager, frame by frame; and some bits decoders ignore
        assert found == [] or {one.frame is not None for one in found if one.layer} == {True}
        assert (files.overlay.read_bytes(), files.state.read_bytes()) == (DISK[BLOCK:] + DISK[:BLOCK], b"device state")
        if not found:
            assert world.memory(made) == world.memory(world.compacted)
        for path in world.target.iterdir():
            path.unlink()


@settings(max_examples=2 * settings().max_examples, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(part=st.sampled_from(PARTS), place=st.integers(min_value=0), bit=st.integers(0, 7))
def test_any_flipped_bit_is_refused(world: World, part: str, place: int, bit: int) -> None:
    """A file that was damaged: its digest refuses it, whatever was hit."""
    blob = world.blob(world.compacted, part)
    path = world.bench.store.blob_path(blob.digest)
    data = path.read_bytes()
    wrong = bytearray(data)
    wrong[place % len(wrong)] ^= 1 << bit
    path.write_bytes(wrong)
    try:
        world.refused(world.compacted, "damaged or changed|digest")
    finally:
        path.write_bytes(data)


def all_bits(data: bytes) -> Iterator[bytes]:
    for place in range(len(data)):
        for bit in range(8):
            wrong = bytearray(data)
            wrong[place] ^= 1 << bit
            yield bytes(wrong)


@pytest.mark.parametrize("runs", [[Run(0, 9, LAYER, 3), Run(20, 3, LAYER, 0), Run(40, 5, ZERO)],
                                  [Run(0, 9, LAYER, 0), Run(40, 5, ZERO)]], ids=["moved", "in order"])  # fmt: skip
def test_every_bit_of_a_block_map(runs: list[Run]) -> None:
    data = blockmap.encode(runs, kind=MEMORY, role=ROLE_LAYER, blocks=64, layers=1, base=b"b" * 32)
    assert blockmap.decode(data).runs == runs
    for wrong in all_bits(data):
        with pytest.raises(SnapshotInvalid):
            blockmap.decode(wrong)
    for length in range(len(data)):
        with pytest.raises(SnapshotInvalid):
            blockmap.decode(data[:length])


def test_every_bit_of_a_seek_table() -> None:
    """A flipped size moves what follows, so the frames no longer fill the file; a checksum is seen at its frame."""
    frames = [seekable.Frame(0, 100, BLOCK, 7), seekable.Frame(100, 50, 2 * BLOCK, 8)]
    table = seekable.encode_table(frames)
    for wrong in all_bits(table):
        try:
            found = seekable.decode_table(wrong, 150 + len(table))
        except SnapshotInvalid:
            continue
        assert [frame.compressed for frame in found] == [100, 50]
        assert [(frame.size, frame.checksum) for frame in found] != [(frame.size, frame.checksum) for frame in frames]
    for length in range(len(table)):
        with pytest.raises(SnapshotInvalid):
            seekable.decode_table(table[:length], 150 + length)


def test_every_bit_of_a_manifest_and_its_config(world: World) -> None:
    data = world.bench.store.blob_path(world.snapshot.digest).read_bytes()
    config = world.bench.store.blob_path(manifest.config_of(data).digest).read_bytes()
    for wrong in all_bits(config):
        with pytest.raises(SnapshotInvalid):
            manifest.decode(data, wrong)
    for wrong in all_bits(data[:200]):
        try:
            assert manifest.decode(wrong, config).digest != world.snapshot.digest
        except SnapshotInvalid:
            continue


def newer(data: bytes, place: int) -> bytes:
    out = bytearray(data)
    out[place] = 9
    return bytes(out)


def test_a_newer_version_of_each_format_says_so(world: World) -> None:
    store, bench = world.bench.store, world.bench
    path = store.blob_path(world.blob(world.compacted, "memory layer").digest)
    data = path.read_bytes()
    for part, wrong in (
        ("memory layer", newer(data, data.index(blockmap.MAGIC) + 4)),
        ("disk map", newer(store.read(world.compacted.disk.map), 4)),
    ):
        made = world.forged(world.compacted, part, wrong)
        world.refused(made, "format version 9")
        with pytest.raises(SnapshotInvalid) as caught:
            world.restore(made)
        assert "newer version" in caught.value.hint

    def register(changes: dict[str, Any], config_changes: dict[str, Any]) -> str:
        """A manifest that this program would not write."""
        plain = json.loads(store.blob_path(world.snapshot.digest).read_bytes())
        config = json.loads(store.blob_path(plain["config"]["digest"]).read_bytes()) | config_changes
        described = store.add(json.dumps(config).encode(), manifest.CONFIG)
        plain = plain | changes | {"config": msgspec.to_builtins(described)}
        return store.add(json.dumps(plain).encode(), manifest.MANIFEST).digest

    with pytest.raises(SnapshotInvalid, match="version 2") as caught:
        store.get(register({}, {"version": 2}))
    assert "newer version" in caught.value.hint
    with pytest.raises(SnapshotInvalid, match=r"snapshot\.v2") as caught:
        store.get(register({"artifactType": "application/vnd.perdure.snapshot.v2"}, {}))
    assert "newer version" in caught.value.hint
    kept = (bench.templates / "warm" / "template.json").read_bytes()
    try:
        (bench.templates / "warm" / "template.json").write_bytes(kept.replace(b'"version":1', b'"version":2'))
        world.refused(world.snapshot, "format version 2")
    finally:
        (bench.templates / "warm" / "template.json").write_bytes(kept)
    assert store.get(register({}, {"of a later program": 1})).config.version == 1  # fields may be added


def test_put_together_wrongly(world: World) -> None:
    snapshot, store = world.snapshot, world.bench.store

    def with_memory(**changes: Any) -> Snapshot:
        return store.register(
            msgspec.structs.replace(snapshot, memory=msgspec.structs.replace(snapshot.memory, **changes))
        )

    layered = snapshot.memory.layers
    world.refused(with_memory(layers=layered[::-1]), "wrong base")
    world.refused(with_memory(layers=layered[1:]), "map of something else")
    world.refused(with_memory(layers=[*layered, layered[0]]), "map of something else")
    world.refused(with_memory(map=msgspec.structs.replace(snapshot.disk.map, media_type=manifest.MEMORY_MAP)))
    strange = msgspec.structs.replace(snapshot.disk.layers[0], media_type=manifest.MEMORY_LAYER)
    world.refused(with_memory(layers=[layered[0], strange]), "is for disk of 20 blocks")
    other = blockmap.encode([Run(0, 1, LAYER + 1, 500)], kind=MEMORY, role=blockmap.ROLE_FLAT, blocks=BLOCKS,
                            layers=2, base=bytes.fromhex(snapshot.config.template_digest))  # fmt: skip
    world.refused(with_memory(map=store.add(other, manifest.MEMORY_MAP)), "does not hold")


def test_another_machine(world: World) -> None:
    for name, value in (("cpu_vendor", "GenuineIntel"), ("cpu_family", 6), ("firecracker", "1.9.0"), ("vcpus", 2),
                        ("memory_mib", 512)):  # fmt: skip
        here = msgspec.structs.replace(facts(), **{name: value})
        with pytest.raises(SnapshotInvalid, match=f"{name} was ") as caught:
            restore.prepare(
                world.bench.store, world.snapshot, folder=world.target, templates=world.bench.templates, facts=here
            )
        assert "Restore it where" in caught.value.hint
        assert list(world.target.iterdir()) == []
        found = verify.snapshot(
            world.bench.store, world.snapshot.digest, templates=world.bench.templates, facts={name: value}
        )
        assert [one.problem.split()[0] for one in found.findings] == [name]


def test_without_its_template(world: World) -> None:
    away = world.bench.root / "away"
    shutil.move(world.bench.templates / "warm", away)
    try:
        world.refused(world.snapshot, "template warm is not in", NotFound)
    finally:
        shutil.move(away, world.bench.templates / "warm")


def test_zstd_accepts_layers_of_both_versions(world: World) -> None:
    """The real program: it takes the block map and the seek table for what they are, frames to skip."""
    for snapshot, version in ((world.snapshot, blockmap.IN_ORDER), (world.compacted, blockmap.MOVED)):
        path = world.bench.store.verified(world.blob(snapshot, "memory layer"))
        data = path.read_bytes()
        assert data[data.index(blockmap.MAGIC) + 4] == version
        assert subprocess.run(["zstd", "-t", "-q", path], check=False).returncode == 0
        plain = subprocess.run(["zstd", "-d", "-q", "-c", path], check=True, capture_output=True).stdout
        with Layer(path) as layer:
            assert plain == b"".join(layer.frame(number) for number in range(len(layer.frames)))


def test_no_damage_makes_the_reader_take_much_memory(world: World, tmp_path: Path) -> None:
    """A frame that says it becomes gigabytes is refused by its size, before anything is made ready for it."""
    frame = layers.compressed(bytes(BLOCK))
    index = blockmap.encode([Run(0, 1, LAYER)], kind=MEMORY, role=ROLE_LAYER, blocks=BLOCKS, layers=1)
    held = seekable.skippable(layers.MAP_MAGIC, index)
    for size in (0xFFFFF000, seekable.FRAME_BYTES_MAX + BLOCK, BLOCK + 1, 0):
        table = seekable.encode_table(
            [
                seekable.Frame(0, len(frame), size, seekable.content_checksum(frame)),
                seekable.Frame(len(frame), len(held), 0, seekable.EMPTY_CHECKSUM),
            ]
        )
        path = tmp_path / "bomb"
        path.write_bytes(frame + held + table)
        with pytest.raises(SnapshotInvalid, match="frame 0 has a size that no frame"):
            Layer(path)
