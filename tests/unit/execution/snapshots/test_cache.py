"""The cache of frames: few reads, no frame twice, never a frame that is not there, never more than the limit."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import NotFound, SnapshotInvalid, Unavailable
from perdure.execution.snapshots import cache, cachefile
from perdure.execution.snapshots.cache import GAP_BYTES, REQUEST_BYTES
from perdure.execution.snapshots.layers import Layer
from perdure.execution.snapshots.store import Store
from perdure.formats import presence
from perdure.formats.manifest import Descriptor
from perdure.formats.seekable import Frame
from perdure.testing.stores import DEADLINE_S, Shelf, frame_of


def test_a_cached_layer_reads_as_a_local_one(shelf: Shelf) -> None:
    descriptor, content = shelf.layer(1)
    with shelf.open(descriptor) as layer, Layer(Store(shelf.root / "remote").verified(descriptor)) as local:
        assert (layer.map, layer.frames, layer.starts) == (local.map, local.frames, local.starts)
        assert layer.path == shelf.path(descriptor)
        assert layer.partial
        assert not any(map(layer.present, range(8)))
        for number in (3, 0, 7):
            assert layer.frame(number) == frame_of(content, number)
        assert [number for number in range(8) if layer.present(number)] == [0, 3, 7]
        layer.fetch(range(8))
        assert not layer.partial
        assert layer.path.read_bytes() == local.path.read_bytes()


def test_the_index_costs_one_read_or_two(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    small, _ = shelf.layer(1)
    shelf.open(small).close()
    assert len(shelf.remote.ranges) == 1
    shelf.remote.ranges.clear()
    monkeypatch.setattr(cachefile, "TAIL_BYTES", 140)  # the table, and a part of the map
    other, content = shelf.layer(2)
    with shelf.open(other) as layer:
        assert layer.frame(1) == frame_of(content, 1)
        assert len(shelf.remote.ranges) == 3
    shelf.remote.ranges.clear()
    monkeypatch.setattr(cachefile, "TAIL_BYTES", 20)  # less than the table
    third, content = shelf.layer(3)
    with shelf.open(third) as layer:
        assert len(shelf.remote.ranges) == 3
        assert layer.frame(1) == frame_of(content, 1)


def test_only_what_is_wanted_is_read_in_few_ranges(shelf: Shelf) -> None:
    descriptor, _ = shelf.layer(1, frames=40)
    with shelf.open(descriptor) as layer:
        shelf.remote.ranges.clear()
        layer.fetch([0, 1, 2, 10, 30])
        offsets = sorted((offset, length) for _, offset, length in shelf.remote.ranges)
        frames = layer.frames
        assert offsets == [
            (frames[0].offset, frames[3].offset - frames[0].offset),
            (frames[10].offset, frames[10].compressed),
            (frames[30].offset, frames[30].compressed),
        ]
        shelf.remote.ranges.clear()
        layer.fetch([0, 1, 2, 10, 30])
        assert shelf.remote.ranges == []
        layer.fetch(range(40))
        assert all(length <= REQUEST_BYTES for _, _, length in shelf.remote.ranges)
        read = sum(length for _, _, length in shelf.remote.ranges)
        assert read == sum(frames[number].compressed for number in range(40) if number not in (0, 1, 2, 10, 30))


@given(
    st.lists(st.integers(4, 200_000), min_size=1, max_size=60),
    st.sets(st.integers(0, 59)),
)
def test_ranges_cover_what_is_wanted_and_no_large_gap(sizes: list[int], wanted: set[int]) -> None:
    frames, offset = [], 0
    for size in sizes:
        frames.append(Frame(offset, size, size, 0))
        offset += size
    numbers = sorted(number for number in wanted if number < len(frames))
    found = list(cache.ranges(frames, numbers))
    covered = [number for first, last in found for number in range(first, last + 1)]
    assert covered == sorted(covered)
    assert set(numbers) <= set(covered)
    for first, last in found:
        length = frames[last].offset + frames[last].compressed - frames[first].offset
        assert length <= REQUEST_BYTES or first == last
        inside = [number for number in numbers if first <= number <= last]
        assert (inside[0], inside[-1]) == (first, last)
        for low, high in pairwise(inside):
            assert frames[high].offset - frames[low].offset - frames[low].compressed < GAP_BYTES


def test_two_machines_that_want_the_same_cause_one_read(shelf: Shelf) -> None:
    descriptor, content = shelf.layer(1)
    with shelf.open(descriptor) as one, shelf.open(descriptor) as two, ThreadPoolExecutor(8) as pool:
        shelf.remote.ranges.clear()
        shelf.remote.gate.clear()
        first = pool.submit(one.fetch, [5])
        assert shelf.remote.reached.acquire(timeout=DEADLINE_S)
        assert shelf.remote.reached.acquire(timeout=DEADLINE_S)  # that of the index came before
        others = [pool.submit(layer.fetch, [5]) for layer in (one, two) for _ in range(3)]
        assert len(two.request([5])) == 1
        shelf.remote.gate.set()
        for each in (first, *others):
            each.result(DEADLINE_S)
        assert one.frame(5) == two.frame(5) == frame_of(content, 5)
    assert len(shelf.remote.ranges) == 1


def test_many_threads_that_want_many_frames(shelf: Shelf) -> None:
    descriptor, content = shelf.layer(1, frames=60)
    orders = [random.Random(seed).sample(range(60), 60) for seed in range(12)]

    def read(order: Sequence[int]) -> bool:
        with shelf.open(descriptor) as layer:
            return all(layer.frame(number) == frame_of(content, number) for number in order)

    with shelf.open(descriptor) as layer:
        shelf.remote.ranges.clear()
        with ThreadPoolExecutor(12) as pool:
            assert all(pool.map(read, orders))
        assert shelf.remote.bytes_read == layer.frames[-1].offset + layer.frames[-1].compressed


def test_what_was_fetched_is_there_the_next_time(shelf: Shelf) -> None:
    descriptor, content = shelf.layer(1)
    with shelf.open(descriptor) as layer:
        layer.fetch([1, 2, 6])
    shelf.settle()
    shelf.remote.ranges.clear()
    with shelf.open(descriptor) as layer:
        assert [number for number in range(8) if layer.present(number)] == [1, 2, 6]
        assert layer.frame(2) == frame_of(content, 2)
    assert shelf.remote.ranges == []


KILLED = """
import os, signal, sys
from pathlib import Path
from perdure.execution.snapshots.cache import FrameCache
from perdure.formats.manifest import Descriptor
cache = FrameCache(Path(sys.argv[1]))
layer = cache.open(Descriptor(media_type="x", digest=sys.argv[3], size=int(sys.argv[4])), sys.argv[2])
layer.fetch([0, 1, 2])
print("fetched", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_nothing_that_is_believed(shelf: Shelf) -> None:
    descriptor, content = shelf.layer(1)
    argv = [sys.executable, "-c", KILLED, str(shelf.root / "cache"), shelf.folder.url, descriptor.digest]
    killed = subprocess.run([*argv, str(descriptor.size)], check=False, capture_output=True)
    assert killed.stdout == b"fetched\n"
    with shelf.open(descriptor) as layer:
        assert not any(map(layer.present, range(8)))  # it was not recorded; only the index was
        assert layer.frame(1) == frame_of(content, 1)


@pytest.mark.parametrize("damage", ["frame", "index", "record", "record gone", "shorter", "longer", "data gone"])
def test_what_the_disk_lost_is_fetched_again(shelf: Shelf, damage: str) -> None:
    descriptor, content = shelf.layer(1)
    with shelf.open(descriptor) as layer:
        layer.fetch(range(8))
        index = layer.frames[-1].offset + layer.frames[-1].compressed
    shelf.settle()
    path, record = shelf.path(descriptor), shelf.record(descriptor)
    data = bytearray(path.read_bytes())
    if damage == "frame":
        data[100:5000] = bytes(4900)
    elif damage == "index":
        data[index + 20] ^= 1
    path.write_bytes(data[:-1] if damage == "shorter" else data + b"x" if damage == "longer" else data)
    if damage == "record":
        record.write_bytes(b"rubbish")
    elif damage == "record gone":
        record.unlink()
    elif damage == "data gone":
        path.unlink()
    with shelf.open(descriptor) as layer:
        assert b"".join(map(layer.frame, range(8))) == content
    assert path.read_bytes() == Store(shelf.root / "remote").verified(descriptor).read_bytes()


def test_a_record_that_says_too_much_is_found_out(shelf: Shelf) -> None:
    """As if the disk had kept the record and lost the data."""
    descriptor, content = shelf.layer(1)
    shelf.open(descriptor).close()
    record = shelf.record(descriptor)
    held = presence.decode(record.read_bytes())
    for number in range(8):
        held.put(number)
    record.write_bytes(presence.encode(held))
    with shelf.open(descriptor) as layer:
        assert not layer.partial
        assert layer.frame(4) == frame_of(content, 4)


def damaged_since(shelf: Shelf) -> tuple[Descriptor, bytes, Frame]:
    """A layer that an earlier process fetched whole, its content, and the frame (5) that the disk has damaged since."""
    descriptor, content = shelf.layer(1)
    with shelf.open(descriptor) as layer:
        layer.fetch(range(8))
        path, damaged = layer.path, layer.frames[5]
    shelf.settle()
    with path.open("r+b") as file:
        file.seek(damaged.offset + damaged.compressed // 2)
        file.write(b"!!!!")
    return descriptor, content, damaged


def test_what_the_disk_lost_since_is_fetched_again_before_it_counts(shelf: Shelf) -> None:
    """A pager reads the file itself: what it is told to be there is there."""
    descriptor, content, damaged = damaged_since(shelf)
    read = shelf.remote.bytes_read
    with shelf.open(descriptor) as layer:
        assert not layer.partial
        layer.fetch(range(8))
        with Layer(layer.path) as file_itself:
            assert [file_itself.frame(number) for number in range(8)] == [frame_of(content, n) for n in range(8)]
        assert shelf.remote.bytes_read - read == damaged.compressed
        layer.fetch(range(8))
        assert shelf.remote.bytes_read - read == damaged.compressed  # and it is looked at once


def test_a_damaged_frame_is_not_recorded_again(shelf: Shelf) -> None:
    """Where the store does not give it either, the next process knows that it is not there."""
    descriptor, _, _ = damaged_since(shelf)
    with shelf.open(descriptor) as layer:
        shelf.remote.failures = [Unavailable("it is down")]
        with pytest.raises(Unavailable):
            layer.fetch([5])
        assert not layer.present(5)
    shelf.settle()
    assert not presence.decode(shelf.record(descriptor).read_bytes()).has(5)


def test_bytes_that_do_not_verify_never_count(shelf: Shelf) -> None:
    descriptor, content = shelf.layer(1)
    path = Store(shelf.root / "remote").blob_path(descriptor.digest)
    whole = path.read_bytes()
    with shelf.open(descriptor) as layer:
        path.write_bytes(whole[:100] + b"!" + whole[101:])
        with pytest.raises(SnapshotInvalid, match="frame 0") as caught:
            layer.fetch([0, 1])
        assert caught.value.details == {"layer": path.name, "frame": 0}
        assert not layer.present(0)
        path.write_bytes(whole)
        assert layer.frame(0) == frame_of(content, 0)


def test_an_index_that_does_not_verify_leaves_nothing(shelf: Shelf) -> None:
    descriptor, content = shelf.layer(1)
    path = Store(shelf.root / "remote").blob_path(descriptor.digest)
    whole = path.read_bytes()
    for place in (len(whole) - 1, len(whole) - 30, len(whole) - 150):  # footer, table, map
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(SnapshotInvalid, match=path.name):
            shelf.open(descriptor)
        assert list((shelf.root / "cache").iterdir()) == []
    path.unlink()
    with pytest.raises(NotFound):
        shelf.open(descriptor)
    assert list((shelf.root / "cache").iterdir()) == []
    path.write_bytes(whole)
    with shelf.open(descriptor) as layer:
        assert layer.frame(0) == frame_of(content, 0)


def test_two_processes_keep_what_both_fetched(shelf: Shelf) -> None:
    descriptor, _ = shelf.layer(1)
    other = shelf.opened()
    one, two = shelf.open(descriptor), other.open(descriptor, shelf.folder.url)
    one.fetch([0, 1])
    two.fetch([6])
    one.close()
    two.close()
    other._pool.shutdown(wait=True)
    other.close()
    shelf.settle()
    with shelf.open(descriptor) as layer:
        assert [number for number in range(8) if layer.present(number)] == [0, 1, 6]


def test_closing_the_cache_ends_those_who_wait(shelf: Shelf) -> None:
    descriptor, _ = shelf.layer(1)
    with shelf.open(descriptor) as layer:
        assert shelf.remote.reached.acquire(timeout=DEADLINE_S)
        shelf.remote.gate.clear()
        (flight,) = layer.request([3])
        assert shelf.remote.reached.acquire(timeout=DEADLINE_S)
        shelf.cache.close()
        with pytest.raises(Unavailable, match="closed"):
            flight.result(DEADLINE_S)
        with pytest.raises(Unavailable, match="closed"):
            layer.fetch([4])
        shelf.remote.gate.set()
