"""Generations of captures: what is restored is what was captured, whatever the layers look like."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perdure.errors import InvalidValue, NoSpace, NotFound, SnapshotInvalid
from perdure.execution.sandboxes.capturing import base_of
from perdure.execution.sandboxes.record import Record
from perdure.execution.snapshots import capture, restore, spaces, templates
from perdure.execution.snapshots.store import Store
from perdure.formats import memorymap
from perdure.formats.blockmap import BLOCK
from perdure.model import SandboxSpec
from perdure.testing.snapshots import BLOCKS, Bench, captured, facts

DISK_BLOCKS = 64


def block(seed: int) -> bytes:
    """A block that does not compress well; seed 0 is zeros."""
    return random.Random(seed).randbytes(BLOCK) if seed else bytes(BLOCK)


def blocks(seeds: list[int]) -> bytes:
    return b"".join(block(seed) for seed in seeds)


memories = st.lists(st.integers(0, 3), min_size=BLOCKS, max_size=BLOCKS)
disks = st.lists(st.integers(0, 3), min_size=DISK_BLOCKS, max_size=DISK_BLOCKS)
# block -> new content; or "read": logged by KVM though it did not change
touches = st.dictionaries(st.integers(0, BLOCKS - 1), st.one_of(st.integers(0, 9), st.just("read")), max_size=60)


@settings(
    max_examples=settings().max_examples // 3,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(first=memories, generations=st.lists(st.tuples(touches, disks, st.booleans()), min_size=1, max_size=4))
def test_every_generation_restores_what_it_captured(
    new_bench: Callable[[], Bench], first: list[int], generations: list[tuple[dict[int, int | str], list[int], bool]]
) -> None:
    bench = new_bench()
    parent = template = bench.template(blocks(first))
    memory = list(first)
    made = []
    for changes, disk, over in generations:
        for place, seed in changes.items():
            if isinstance(seed, int):
                memory[place] = seed
        held = {place: block(memory[place]) for place in changes}
        parent = bench.capture(parent, held, blocks(disk), over=template if over else None)
        made.append((parent, blocks(memory), blocks(disk)))
    for snapshot, expected_memory, expected_disk in made:
        folder = bench.root / snapshot.digest.removeprefix("sha256:")
        folder.mkdir(exist_ok=True)
        files = restore.prepare(bench.store, snapshot, folder=folder, templates=bench.templates, facts=facts())
        assert files.overlay.read_bytes() == expected_disk
        assert files.state.read_bytes() == b"device state"
        with spaces.memory_of(bench.store, snapshot, template) as space:
            assert space.read(0, BLOCKS) == expected_memory
            # The pager's view: runs of the memory map file over the frames that it names.
            assert through_memory_map(memorymap.decode(files.memory_map.read_bytes()), space) == expected_memory
    assert bench.left_over() == []


def through_memory_map(held: memorymap.MemoryMap, space: spaces.Space) -> bytes:
    base = Path(held.template).read_bytes()
    out = b""
    for run, (first, source, at) in enumerate(zip(held.first, held.source, held.at, strict=True)):
        count = held.count(run)
        if source == memorymap.ZERO:
            out += bytes(count * BLOCK)
        elif source == memorymap.TEMPLATE:
            out += base[first * BLOCK : (first + count) * BLOCK]
        else:
            frame = source - memorymap.FRAME
            assert run in held.by_frame[held.frame_runs[frame] : held.frame_runs[frame + 1]]
            content = space.layers[held.frame_layer[frame]].frame(held.frame_number[frame])
            assert len(content) == held.frame_blocks[frame] * BLOCK
            out += content[at * BLOCK : (at + count) * BLOCK]
    return out


def test_a_block_that_is_the_template_s_again_is_stored_where_the_parent_has_another(bench: Bench) -> None:
    template = bench.template(blocks([1] * BLOCKS))
    disk = blocks([0] * DISK_BLOCKS)
    changed = bench.capture(template, {3: block(7), 4: block(0), 5: block(8)}, disk, over=template)
    back = bench.capture(changed, {number: block(1) for number in range(10)}, disk, over=template)
    with spaces.memory_of(bench.store, back, template) as space:
        assert space.read(0, BLOCKS) == blocks([1] * BLOCKS)
        assert [layer.map.packed for layer in space.layers] == [2, 3]


def test_a_capture_that_is_damaged_or_of_another_template_is_refused(bench: Bench) -> None:
    template = bench.template(blocks([1] * BLOCKS))
    other = bench.template(blocks([2] * BLOCKS), "other")
    disk = blocks([0] * DISK_BLOCKS)
    with pytest.raises(SnapshotInvalid, match="captured over template"):
        bench.capture(template, {3: block(2), 4: block(5)}, disk, over=other)
    bench.capture(template, {3: block(7)}, disk)
    path = bench.root / "captured" / "memory"
    held = path.read_bytes()
    before = len(bench.store.snapshots())
    for damaged in (held[:-1], held[:BLOCK], b"", bytes(len(held)), held[:-1] + bytes([held[-1] ^ 1])):
        path.write_bytes(damaged)
        with pytest.raises(SnapshotInvalid, match="capture file"):
            capture.pack(
                bench.store,
                folder=path.parent,
                overlay=bench.root / "overlay",
                parent=template,
                templates=bench.templates,
                sandbox_id="x",
                image_digest="",
            )
    path.write_bytes(captured({0: block(1)}, BLOCKS + 1))
    with pytest.raises(InvalidValue, match=f"of {BLOCKS + 1} blocks"):
        capture.pack(
            bench.store,
            folder=path.parent,
            overlay=bench.root / "overlay",
            parent=template,
            templates=bench.templates,
            sandbox_id="x",
            image_digest="",
        )
    assert len(bench.store.snapshots()) == before
    assert bench.left_over() == []


def test_pages_only_read_and_unchanged_cost_nothing(bench: Bench) -> None:
    template = bench.template(blocks([1] * BLOCKS))
    snapshot = bench.capture(template, {place: block(1) for place in range(BLOCKS)}, blocks([0] * DISK_BLOCKS))
    assert snapshot.memory.layers == []
    assert snapshot.disk.layers == []
    again = bench.capture(snapshot, {3: block(1)}, blocks([0] * DISK_BLOCKS))
    assert (again.config.memory_bytes, again.config.disk_bytes, again.config.state_bytes) == (0, 0, 0)
    assert again.config.parent == snapshot.digest


def test_a_full_image_may_follow_a_diff(bench: Bench) -> None:
    """It names every block."""
    template = bench.template(blocks([1] * BLOCKS))
    bench.capture(template, {0: block(5)}, blocks([0] * DISK_BLOCKS))
    folder = bench.root / "captured"
    memory = captured({place: block(0) for place in range(BLOCKS)} | {0: block(5)}, BLOCKS)
    (folder / "memory").write_bytes(memory)
    full = capture.pack(
        bench.store,
        folder=folder,
        overlay=bench.root / "overlay",
        parent=template,
        templates=bench.templates,
        sandbox_id="x",
        image_digest="",
    )
    with spaces.memory_of(bench.store, full, template) as space:
        assert space.read(0, BLOCKS) == block(5) + bytes((BLOCKS - 1) * BLOCK)


def test_zstd_accepts_a_layer(bench: Bench) -> None:
    template = bench.template(blocks([0] * BLOCKS))
    changed = {place: block(place + 1) for place in range(0, BLOCKS, 2)}
    snapshot = bench.capture(template, changed, blocks([0] * DISK_BLOCKS))
    path = bench.store.verified(snapshot.memory.layers[0])
    tested = subprocess.run(["zstd", "-t", "-q", path], check=False, capture_output=True)
    assert (tested.returncode, tested.stderr) == (0, b"")
    plain = subprocess.run(["zstd", "-d", "-q", "-c"], check=True, capture_output=True, input=path.read_bytes()).stdout
    assert plain == b"".join(changed.values())


def test_another_cpu_firecracker_or_shape_is_refused_by_name(bench: Bench) -> None:
    snapshot = bench.capture(bench.template(blocks([1] * BLOCKS)), {}, blocks([1] * DISK_BLOCKS))
    other = msgspec.structs.replace(facts(), cpu_family=6, firecracker="1.16.1")
    with pytest.raises(SnapshotInvalid, match=r"firecracker was 1.12.1, is 1.16.1 here; cpu_family was 25, is 6 here"):
        restore.prepare(bench.store, snapshot, folder=bench.root, templates=bench.templates, facts=other)
    newer = msgspec.structs.replace(facts(), guestd="sha256:" + "9" * 64)  # a newer template does not concern it
    restore.prepare(bench.store, snapshot, folder=bench.root, templates=bench.templates, facts=newer)


def test_a_template_built_again_is_a_wrong_base(bench: Bench) -> None:
    snapshot = bench.capture(bench.template(blocks([1] * BLOCKS)), {3: block(2)}, blocks([1] * DISK_BLOCKS))
    (bench.templates / "warm").rename(bench.templates / "away")
    with pytest.raises(NotFound):
        restore.prepare(bench.store, snapshot, folder=bench.root, templates=bench.templates, facts=facts())
    bench.template(blocks([2] * BLOCKS))
    with pytest.raises(SnapshotInvalid, match="wrong base"):
        restore.prepare(bench.store, snapshot, folder=bench.root, templates=bench.templates, facts=facts())
    assert not (bench.root / "memory.map").exists()


def test_a_damaged_template_is_refused(bench: Bench) -> None:
    template = bench.template(blocks([1] * BLOCKS))
    with template.memory.open("r+b") as file:
        file.seek(7 * BLOCK + 9)
        file.write(b"!")
    with pytest.raises(SnapshotInvalid, match="damaged or changed"):
        templates.load(bench.templates, "warm")


def test_files_of_another_size_are_refused(bench: Bench) -> None:
    snapshot = bench.capture(bench.template(blocks([1] * BLOCKS)), {}, blocks([1] * DISK_BLOCKS))
    with pytest.raises(InvalidValue, match="bytes where the snapshot before it has"):
        bench.capture(snapshot, {}, blocks([1] * (DISK_BLOCKS + 1)))


def test_no_space_leaves_the_previous_snapshot(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    template = bench.template(blocks([1] * BLOCKS))
    before = bench.capture(template, {1: block(4)}, blocks([1] * DISK_BLOCKS))
    full = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115 - stands for the disk; closed below
    real = Store.writer

    def writer(store: Store, what: str) -> object:
        made = real(store, what)
        made._file.close()
        made._file = full
        return made

    monkeypatch.setattr(Store, "writer", writer)
    with pytest.raises(NoSpace):
        bench.capture(before, {1: block(5)}, blocks([2] * DISK_BLOCKS))
    full.close()
    monkeypatch.undo()
    assert bench.left_over() == []
    assert [held.digest for held in bench.store.snapshots()] == [before.digest]
    files = restore.prepare(bench.store, before, folder=bench.root, templates=bench.templates, facts=facts())
    assert files.overlay.stat().st_size == DISK_BLOCKS * BLOCK


def test_after_a_newer_template_both_halves_stay_with_their_own(bench: Bench) -> None:
    """guestd or kernel were updated meanwhile: a machine's memory is a difference to what it was started from."""
    old, new = bench.template(blocks([1] * BLOCKS), "old"), bench.template(blocks([2] * BLOCKS), "new")
    snapshot = bench.capture(old, {3: block(3)}, blocks([1] * DISK_BLOCKS))
    files = restore.prepare(bench.store, snapshot, folder=bench.root, templates=bench.templates, facts=new.facts)
    assert files.template == old
    assert memorymap.decode(files.memory_map.read_bytes()).template == str(old.memory)

    started = Record(
        id="x", name="box", spec=SandboxSpec(image="i"), image_digest="", created=0.0,
        template=old.name, template_digest=old.digest,
    )  # fmt: skip
    assert base_of(started, bench.store, bench.templates) == old
    assert base_of(msgspec.structs.replace(started, parent=snapshot.digest), bench.store, bench.templates) == snapshot
    with pytest.raises(SnapshotInvalid, match=f"box was started from template {new.digest}, but old is {old.digest}"):
        base_of(msgspec.structs.replace(started, template_digest=new.digest), bench.store, bench.templates)
    shutil.rmtree(bench.templates / "old")
    with pytest.raises(NotFound):
        base_of(started, bench.store, bench.templates)
