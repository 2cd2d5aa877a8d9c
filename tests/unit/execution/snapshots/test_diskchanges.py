"""What changed on a disk is found without its snapshot: everything that differs, and little else."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.execution.snapshots import capture, diskchanges, restore
from perdure.execution.snapshots.diskchanges import Changes
from perdure.formats.blockmap import BLOCK
from perdure.formats.diskindex import CHUNK, DiskIndex
from perdure.formats.manifest import Snapshot
from perdure.testing.snapshots import Bench, block, blocks_of, facts

SNAPSHOT = "sha256:" + "5" * 64
SIZE = 40 * CHUNK + 3 * BLOCK  # its last chunk is not whole


def disk(path: Path, pieces: dict[int, bytes]) -> Path:
    path.unlink(missing_ok=True)
    with path.open("xb", buffering=0) as file:
        file.truncate(SIZE)
        for at, data in pieces.items():
            os.pwrite(file.fileno(), data, at)
    return path


def write(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), data, at)


def index_of(path: Path) -> DiskIndex:
    found = diskchanges.changes(path, None)
    assert found.ranges is None
    return DiskIndex(SNAPSHOT, found.stamp, found.chunks)


def covers(found: Changes, at: int, length: int) -> bool:
    ranges = found.ranges or []
    return all(
        any(first <= place < end for first, end in ranges) for place in range(at // BLOCK, -(-(at + length) // BLOCK))
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("disks")


places = st.integers(0, SIZE // BLOCK - 1).map(lambda number: number * BLOCK)


@settings(deadline=None)
@given(
    st.dictionaries(places, st.sampled_from([b"x" * BLOCK, b"y" * BLOCK]), max_size=12),
    st.dictionaries(places, st.sampled_from([b"x" * BLOCK, b"z" * BLOCK, bytes(BLOCK)]), max_size=6),
)
def test_all_that_was_written_is_found(folder: Path, before: dict[int, bytes], written: dict[int, bytes]) -> None:
    path = disk(folder / "disk", before)
    old, index = path.read_bytes(), index_of(path)
    for at, data in written.items():
        write(path, at, data)
    found = diskchanges.changes(path, index)
    now = path.read_bytes()
    differ = [at for at in range(0, SIZE, BLOCK) if old[at : at + BLOCK] != now[at : at + BLOCK]]
    assert all(covers(found, at, BLOCK) for at in differ)
    assert sum(end - first for first, end in found.ranges or []) * BLOCK <= len(written) * CHUNK
    assert all(end * BLOCK <= SIZE for _, end in found.ranges or [])
    # and what it found is what the next one is compared with
    again = diskchanges.changes(path, DiskIndex(SNAPSHOT, found.stamp, found.chunks))
    assert again == Changes(found.stamp, found.chunks, [])
    assert diskchanges.chunks_of(path) == found.chunks


def test_a_file_that_nobody_wrote_to_is_not_read(tmp_path: Path) -> None:
    path = disk(tmp_path / "disk", {0: b"x" * BLOCK})
    index = index_of(path)
    wrong = DiskIndex(SNAPSHOT, index.stamp, {})  # were it read, its one chunk would differ
    assert diskchanges.changes(path, wrong).ranges == []


@pytest.mark.parametrize("how", ["the same bytes again", "copied", "moved", "longer", "a hole"])
def test_what_a_stamp_tells(tmp_path: Path, how: str) -> None:
    path = disk(tmp_path / "disk", {0: b"x" * BLOCK, CHUNK: b"y" * CHUNK})
    stamp = diskchanges.stamped(path)
    other = tmp_path / "other"
    if how == "the same bytes again":
        write(path, 0, b"x" * BLOCK)
    elif how == "copied":
        subprocess.run(["cp", "-p", path, other], check=True, timeout=60)
        path = other
    elif how == "moved":
        path.rename(other)
        path = other
    elif how == "longer":
        os.truncate(path, SIZE + BLOCK)
    else:
        subprocess.run(["fallocate", "-p", "-o", str(CHUNK), "-l", str(CHUNK), path], check=True, timeout=60)
    assert (diskchanges.stamp_of(path) == stamp) == (how == "moved")


def test_an_index_is_of_one_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "disk-index"
    index = index_of(disk(tmp_path / "disk", {CHUNK: b"x" * BLOCK}))
    diskchanges.save(path, index)
    assert diskchanges.load(path, SNAPSHOT) == index
    assert diskchanges.load(path, "sha256:" + "6" * 64) is None
    assert diskchanges.load(path, None) is None
    assert diskchanges.load(tmp_path / "none", SNAPSHOT) is None
    path.write_bytes(path.read_bytes()[:-1])
    assert diskchanges.load(path, SNAPSHOT) is None
    assert sorted(one.name for one in tmp_path.iterdir()) == ["disk", "disk-index"]


def restored(bench: Bench, snapshot: Snapshot, folder: Path) -> bytes:
    folder.mkdir()
    files = restore.prepare(bench.store, snapshot, folder=folder, templates=bench.templates, facts=facts())
    return files.overlay.read_bytes()


def test_a_capture_looks_only_where_it_is_told_to(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    memory = blocks_of(range(256))
    template = bench.template(memory)
    numbers = list(range(1, 65))
    first = bench.capture(template, {}, blocks_of(numbers))
    numbers[3], numbers[40] = 1003, 1040
    both = blocks_of(numbers)
    told = bench.capture(first, {}, both, changed=[(40, 48)])
    assert restored(bench, told, tmp_path / "told") == both[: 3 * BLOCK] + block(4) + both[4 * BLOCK :]
    same = bench.capture(first, {}, both, changed=[])
    assert same.disk == first.disk
    assert restored(bench, same, tmp_path / "same") == blocks_of(range(1, 65))
    seen = bench.capture(first, {}, both)
    assert restored(bench, seen, tmp_path / "seen") == both


def test_generations_by_changes_alone(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    draw = random.Random(7)
    template = bench.template(blocks_of(range(256)))
    content = bytearray(blocks_of(range(200)))
    overlay = tmp_path / "overlay"
    snapshot, index = bench.capture(template, {}, bytes(content)), index_of(overlay)
    for generation in range(12):
        index = DiskIndex(snapshot.digest, index.stamp, index.chunks)
        for _ in range(draw.randrange(4)):
            number = draw.randrange(200)
            data = draw.choice([bytes(BLOCK), block(draw.randrange(1, 1 << 30))])
            content[number * BLOCK : (number + 1) * BLOCK] = data
            write(overlay, number * BLOCK, data)
        found = diskchanges.changes(overlay, index)
        snapshot = capture.pack(
            bench.store,
            folder=tmp_path / "captured",
            overlay=overlay,
            changed=found.ranges,
            parent=snapshot,
            templates=bench.templates,
            sandbox_id="0123456789ab",
            image_digest="",
        )
        index = DiskIndex(snapshot.digest, found.stamp, found.chunks)
        assert restored(bench, snapshot, tmp_path / f"restored-{generation}") == content
