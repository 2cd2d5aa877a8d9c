"""Compaction: another shape, the same content; and what was there stays until somebody removes it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perdure.errors import NotFound, SnapshotInvalid
from perdure.execution.snapshots import layers, restore, spaces
from perdure.execution.snapshots.care import compact as compaction
from perdure.execution.snapshots.care import content, explain, verify
from perdure.execution.snapshots.store import Store
from perdure.execution.snapshots.templates import Template
from perdure.formats import memorymap
from perdure.formats.blockmap import BLOCK, LAYER
from perdure.formats.manifest import Snapshot
from perdure.model import LogPosition
from perdure.testing.snapshots import BLOCKS, Bench, block, blocks_of, facts

DISK_BLOCKS = 48
DISK = blocks_of(range(DISK_BLOCKS))
HOT = (200, 7, 8, 9, 100, 255, 1, 0)


def compact(bench: Bench, snapshot: Snapshot) -> Snapshot:
    return compaction.compact(bench.store, snapshot.digest, templates_folder=bench.templates)


def memory_of(bench: Bench, snapshot: Snapshot, template: Template) -> bytes:
    with spaces.memory_of(bench.store, snapshot, template) as space:
        return space.read(0, BLOCKS)


def disk_of(bench: Bench, snapshot: Snapshot) -> bytes:
    with spaces.disk_of(bench.store, snapshot, snapshot.disk.size) as space:
        return space.read(0, space.blocks)


memories = st.lists(st.integers(0, 3), min_size=BLOCKS, max_size=BLOCKS)
disks = st.lists(st.integers(0, 3), min_size=DISK_BLOCKS, max_size=DISK_BLOCKS)
touches = st.dictionaries(st.integers(0, BLOCKS - 1), st.integers(0, 9), max_size=60)


@settings(
    max_examples=settings().max_examples // 3,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    first=memories,
    generations=st.lists(st.tuples(touches, disks), min_size=1, max_size=4),
    hot=st.lists(st.integers(0, BLOCKS - 1), max_size=40, unique=True),
    after=touches,
)
def test_the_content_stays_and_the_chain_goes_on(
    new_bench: Callable[[], Bench],
    first: list[int],
    generations: list[tuple[dict[int, int], list[int]]],
    hot: list[int],
    after: dict[int, int],
) -> None:
    bench = new_bench()
    parent = template = bench.template(blocks_of(first))
    memory, disk = list(first), [0] * DISK_BLOCKS
    for changes, disk in generations:
        for place, seed in changes.items():
            memory[place] = seed
        held = {place: block(seed) for place, seed in changes.items()}
        parent = bench.capture(parent, held, blocks_of(disk), working_set=tuple(hot))
    assert isinstance(parent, Snapshot)
    made = compact(bench, parent)
    assert len(made.memory.layers) <= 1
    assert len(made.disk.layers) <= 1
    bench.store.remove(digest for digest in bench.store.digests() if digest != made.digest)
    assert verify.whole(bench.store, templates=bench.templates).findings == []
    assert memory_of(bench, made, template) == blocks_of(memory)
    assert disk_of(bench, made) == blocks_of(disk)
    files = restore.prepare(bench.store, made, folder=bench.root, templates=bench.templates, facts=facts())
    assert files.overlay.read_bytes() == blocks_of(disk)
    held_map = memorymap.decode(files.memory_map.read_bytes())
    assert list(held_map.hot) == hot
    for place, seed in after.items():
        memory[place] = seed
    following = bench.capture(made, {place: block(seed) for place, seed in after.items()}, blocks_of(disk[::-1]))
    assert memory_of(bench, following, template) == blocks_of(memory)
    assert disk_of(bench, following) == blocks_of(disk[::-1])
    again = compact(bench, following)
    assert memory_of(bench, again, template) == blocks_of(memory)
    assert bench.left_over() == []


@pytest.fixture
def line(bench: Bench) -> tuple[Template, Snapshot]:
    """Ten generations: each changes every third block, so most of the older layers is dead."""
    parent = template = bench.template(blocks_of([1] * BLOCKS))
    for number in range(10):
        changed = {place: block(1000 * number + place) for place in range(number % 3, BLOCKS, 3)}
        parent = bench.capture(parent, changed, block(number + 60) + DISK[BLOCK:], working_set=HOT)
    assert isinstance(parent, Snapshot)
    return template, parent


def test_the_working_set_becomes_one_read(bench: Bench, line: tuple[Template, Snapshot]) -> None:
    _, snapshot = line
    before = explain.explain(bench.store, snapshot.digest, templates_folder=bench.templates)
    made = compact(bench, snapshot)
    after = explain.explain(bench.store, made.digest, templates_folder=bench.templates)
    assert before.working_set.reads > 4
    assert (after.working_set.blocks, after.working_set.frames, after.working_set.reads) == (len(HOT), 1, 1)
    with layers.Layer(bench.store.blob_path(made.memory.layers[0].digest)) as layer:
        places = {run.first + step: run.at + step for run in layer.map.runs for step in range(run.length)}
        assert [places[hot] for hot in HOT] == list(range(len(HOT)))  # the order of first touch
        rest = [places[number] for number in range(BLOCKS) if number not in HOT]
        assert rest == sorted(rest)  # the others by address
    assert after.memory.layers[0].dead_bytes == 0
    assert after.total_bytes < before.total_bytes / 2


def test_what_it_keeps_and_what_it_says(bench: Bench, line: tuple[Template, Snapshot]) -> None:
    template, snapshot = line
    position = LogPosition(run_id="r", branch=1, seq=7, epoch=2)
    bound = bench.store.register(
        msgspec.structs.replace(snapshot, config=msgspec.structs.replace(snapshot.config, position=position))
    )
    bench.store.keep_working_set(bound.digest, HOT)
    made = compact(bench, bound)
    kept = ("sandbox_id", "created", "template", "template_digest", "facts", "image_digest", "parent", "position")
    for name in kept:
        assert getattr(made.config, name) == getattr(bound.config, name)
    assert made.state == bound.state
    assert made.config.replaces == [bound.digest]
    assert bench.store.working_set(made.digest) == list(HOT)
    assert bench.store.get(bound.digest) == bound  # it is the caller's to remove
    assert made.info().stored_bytes == sum(blob.size for blob in made.descriptors)
    once = compact(bench, made)
    assert once == made  # nothing would change
    assert memory_of(bench, made, template) == memory_of(bench, bound, template)


def test_blocks_that_are_the_templates_again_cost_nothing(bench: Bench) -> None:
    template = bench.template(blocks_of([1] * 100 + [0] * (BLOCKS - 100)))
    first = bench.capture(template, {0: block(5), 1: block(0), 150: block(6), 151: block(6)}, DISK)
    second = bench.capture(first, {0: block(1), 1: block(1), 2: block(0), 150: block(0)}, DISK)
    assert len(second.memory.layers) == 2
    made = compact(bench, second)
    with layers.Layer(bench.store.blob_path(made.memory.layers[0].digest)) as layer:
        assert [(run.first, run.source == LAYER) for run in layer.map.runs] == [(2, False), (151, True)]
    back = bench.capture(second, {2: block(1), 151: block(0)}, bytes(len(DISK)))
    empty = compact(bench, back)
    assert (empty.memory.layers, empty.disk.layers) == ([], [])
    assert memory_of(bench, empty, template) == memory_of(bench, back, template)
    assert disk_of(bench, empty) == bytes(len(DISK))


def test_the_same_content_is_stored_once(bench: Bench) -> None:
    template = bench.template(blocks_of([0] * BLOCKS))
    snapshot = bench.capture(template, {number: block(1 + number % 2) for number in range(100)}, DISK)
    made = compact(bench, snapshot)
    with layers.Layer(bench.store.blob_path(made.memory.layers[0].digest)) as layer:
        assert layer.map.packed == 2
    assert memory_of(bench, made, template) == memory_of(bench, snapshot, template)


def test_zstd_accepts_the_layer(bench: Bench, line: tuple[Template, Snapshot]) -> None:
    made = compact(bench, line[1])
    for layer in (*made.memory.layers, *made.disk.layers):
        path = bench.store.verified(layer)
        tested = subprocess.run(["zstd", "-t", "-q", path], check=False, capture_output=True)
        assert (tested.returncode, tested.stderr) == (0, b"")
        plain = subprocess.run(["zstd", "-d", "-q", "-c", path], check=True, capture_output=True).stdout
        with layers.Layer(path) as opened:
            assert plain == b"".join(opened.frame(number) for number in range(len(opened.frames)))
            assert len(plain) == opened.map.packed * BLOCK


def test_a_damaged_snapshot_is_not_rewritten(bench: Bench, line: tuple[Template, Snapshot]) -> None:
    path = bench.store.blob_path(line[1].memory.layers[-1].digest)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    before = sorted(bench.store.digests())
    with pytest.raises(SnapshotInvalid, match="damaged or changed"):
        compact(bench, line[1])
    assert sorted(bench.store.digests()) == before
    with pytest.raises(NotFound):
        compaction.compact(bench.store, "sha256:" + "0" * 64, templates_folder=bench.templates)


def test_another_content_is_never_registered(
    bench: Bench, line: tuple[Template, Snapshot], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong on the way, it is seen before anything takes the old one's place."""
    real = layers.compressed

    def wrong(frame: bytes) -> bytes:
        return real(frame[:-1] + bytes([frame[-1] ^ 1]))

    monkeypatch.setattr(layers, "compressed", wrong)
    before = bench.store.digests()
    with pytest.raises(SnapshotInvalid, match="does not have the content"):
        compact(bench, line[1])
    assert bench.store.digests() == before


def test_what_is_due(bench: Bench, line: tuple[Template, Snapshot]) -> None:
    def due(snapshot: Snapshot) -> bool:
        return explain.due(bench.store, snapshot, templates_folder=bench.templates)

    assert due(line[1])  # ten layers
    made = compact(bench, line[1])
    assert not due(made)
    some = bench.capture(made, {number: block(number + 5000) for number in range(20)}, DISK)
    assert not due(some)
    most = some
    for seed in (6000, 7000):
        most = bench.capture(most, {number: block(number + seed) for number in range(BLOCKS)}, DISK)
    assert due(most)  # what the layers before the last hold is dead
    assert explain.explain(bench.store, most.digest, templates_folder=bench.templates).compaction_due


def test_the_digest_of_content_is_that_of_the_file(bench: Bench, line: tuple[Template, Snapshot]) -> None:
    template, snapshot = line
    raw = bench.root / "raw"
    raw.write_bytes(memory_of(bench, snapshot, template))  # holes or zeros: the same
    with spaces.memory_of(bench.store, snapshot, template) as space:
        assert content.digest(space) == content.digest_of_file(raw)
    assert content.digest_of_file(template.memory) != content.digest_of_file(raw)


def test_sweeps_beside_it_wait_for_nothing_and_take_nothing(bench: Bench, line: tuple[Template, Snapshot]) -> None:
    template, snapshot = line
    other = Store(bench.store.folder)
    before = memory_of(bench, snapshot, template)
    told: list[str] = []

    def progress(what: str, done: int, total: int) -> None:
        if not told or told[-1] != what:
            told.append(what)
            is_free = ["flock", "--exclusive", "--nonblock", other.folder / "lock", "true"]
            assert subprocess.run(is_free, check=False).returncode == 0
            other.sweep(lambda digest: digest != snapshot.digest)

    made = compaction.compact(bench.store, snapshot.digest, templates_folder=bench.templates, progress=progress)
    assert len(told) > 4  # before and after each layer
    assert bench.left_over() == []
    assert memory_of(bench, made, template) == before
    assert verify.whole(bench.store, templates=bench.templates).findings == []
