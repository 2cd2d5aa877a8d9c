"""The cache of frames: few reads, no frame twice, never a frame that is not there, never more than the limit."""

from __future__ import annotations

import asyncio
import errno
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import InvalidValue, NoSpace, NotFound, SnapshotInvalid, Unavailable
from perdure.execution.snapshots import cache, cachefile, layers, transfer
from perdure.execution.snapshots.cache import GAP_BYTES, REQUEST_BYTES, CachedLayer, FrameCache
from perdure.execution.snapshots.fetching import Fetcher
from perdure.execution.snapshots.layers import FRAME_BLOCKS, Layer
from perdure.execution.snapshots.store import Store
from perdure.execution.snapshots.stores.contract import RemoteStore
from perdure.execution.snapshots.stores.folder import FolderStore
from perdure.formats import presence
from perdure.formats.blockmap import BLOCK, LAYER, MEMORY, NO_BASE, Run
from perdure.formats.manifest import Descriptor
from perdure.formats.seekable import Frame
from perdure.testing.snapshots import BLOCKS
from perdure.testing.stores import Counting, Node, block

DEADLINE_S = 20.0


class Held(Counting):
    """A store whose reads wait while ``gate`` is closed, and fail as they are told."""

    def __init__(self, inner: RemoteStore) -> None:
        super().__init__(inner)
        self.gate = threading.Event()
        self.gate.set()
        self.reached = threading.Semaphore(0)
        self.failures: list[BaseException] = []

    def read(self, descriptor: Descriptor, offset: int, length: int) -> bytes:
        self.reached.release()
        assert self.gate.wait(DEADLINE_S)
        if self.failures:
            raise self.failures.pop()
        return super().read(descriptor, offset, length)


class Shelf:
    """A folder with layers, and a cache before it."""

    def __init__(self, root: Path, limit_bytes: int = 1 << 30) -> None:
        self.root = root
        self.folder = FolderStore(root / "remote")
        self.remote = Held(self.folder)
        self.limit_bytes = limit_bytes
        self.cache = self.opened()

    def opened(self) -> FrameCache:
        return FrameCache(self.root / "cache", limit_bytes=self.limit_bytes, connect=lambda url: self.remote)

    def settle(self) -> None:
        """What the cache does after a frame has come: the limit, the record. Then as after a restart of the node."""
        self.cache._pool.shutdown(wait=True)
        self.cache.close()
        self.cache = self.opened()

    def layer(self, seed: int, frames: int = 8) -> tuple[Descriptor, bytes]:
        """A layer of noise; its content."""
        content = random.Random(seed).randbytes(frames * FRAME_BLOCKS * BLOCK)
        store = Store(self.root / "remote")
        runs = [Run(0, frames * FRAME_BLOCKS, LAYER, 0)]
        with store.writing():
            made = layers.write(store, runs, [content], kind=MEMORY, blocks=1 << 20, base=NO_BASE)
        assert made is not None
        return made, content

    def open(self, descriptor: Descriptor) -> CachedLayer:
        return self.cache.open(descriptor, self.folder.url)

    def path(self, descriptor: Descriptor) -> Path:
        return self.root / "cache" / descriptor.digest.removeprefix("sha256:")

    def record(self, descriptor: Descriptor) -> Path:
        path = self.path(descriptor)
        return path.with_name(path.name + ".present")


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    shelf = Shelf(tmp_path)
    yield shelf
    shelf.remote.gate.set()
    shelf.cache.close()


def frame_of(content: bytes, number: int) -> bytes:
    size = FRAME_BLOCKS * BLOCK
    return content[number * size : (number + 1) * size]


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


def test_the_layer_that_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, limit_bytes=3 * 9 * 64 << 10)
    made = [shelf.layer(seed)[0] for seed in range(5)]
    with shelf.cache.open(made[0], shelf.folder.url) as pinned:
        pinned.fetch(range(8))
        for descriptor in made[1:]:
            with shelf.open(descriptor) as layer:
                layer.fetch(range(8))
            shelf.settle()
        assert [shelf.path(descriptor).exists() for descriptor in made] == [True, False, False, True, True]
        assert [shelf.record(descriptor).exists() for descriptor in made] == [True, False, False, True, True]
        assert all(map(pinned.present, range(8)))
    with shelf.open(made[1]) as layer:  # it comes again, and now the first one may go
        layer.fetch(range(8))
    shelf.settle()
    assert shelf.path(made[1]).exists()
    held = sum(path.stat().st_blocks * 512 for path in (tmp_path / "cache").iterdir())
    assert held <= shelf.limit_bytes
    shelf.cache.close()


def full_disk(monkeypatch: pytest.MonkeyPatch, is_full: Callable[[], bool]) -> None:
    """The cache's writes fail while it is."""
    real = cachefile.write_at

    def write_at(file: int, offset: int, data: bytes) -> None:
        if is_full():
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file, offset, data)

    monkeypatch.setattr(cachefile, "write_at", write_at)


def test_a_full_disk_evicts_what_is_not_used(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    idle, used = shelf.layer(1)[0], shelf.layer(2)
    with shelf.open(idle) as layer:
        layer.fetch(range(8))
    shelf.settle()
    with shelf.open(used[0]) as layer:
        full_disk(monkeypatch, lambda: shelf.path(idle).exists())
        assert layer.frame(2) == frame_of(used[1], 2)
    assert not shelf.path(idle).exists()


def test_a_disk_that_stays_full_is_told_and_nothing_counts(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    descriptor, content = shelf.layer(1)
    full = [True]
    full_disk(monkeypatch, lambda: full[0])
    with pytest.raises(NoSpace):
        shelf.open(descriptor)
    assert list((shelf.root / "cache").iterdir()) == []
    full[0] = False
    with shelf.open(descriptor) as layer:
        full[0] = True
        with pytest.raises(NoSpace):
            layer.fetch([3])
        assert not layer.present(3)
        full[0] = False
        assert layer.frame(3) == frame_of(content, 3)


def test_what_another_process_uses_is_not_evicted(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, limit_bytes=1)
    other = shelf.opened()
    descriptor, content = shelf.layer(1)
    another, _ = shelf.layer(2)
    with other.open(descriptor, shelf.folder.url) as used:
        used.fetch([0])
        with shelf.open(another) as layer:
            layer.fetch([0])
        shelf.settle()
        assert not shelf.path(another).exists()
        assert shelf.path(descriptor).exists()
        assert used.frame(0) == frame_of(content, 0)
    other.close()
    shelf.cache.close()


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


# A pager's view


@pytest.fixture
def attached(tmp_path: Path) -> Iterator[tuple[Node, Fetcher, bytes]]:
    with Node(tmp_path / "here") as here, Node(tmp_path / "there") as there:
        remote = FolderStore(tmp_path / "remote")
        template = here.template(bytes(BLOCKS * BLOCK))
        content = b"".join(block(seed + 1) for seed in range(BLOCKS))
        changed = {place: block(place + 1) for place in range(BLOCKS)}
        snapshot = here.capture(template, changed, block(1) * 4, image=here.image())
        transfer.push(here.store, here.templates, here.images, snapshot, remote)
        reference = transfer.tag_of(snapshot.digest)
        transfer.attach(there.store, there.templates, there.images, remote, reference)
        with Fetcher(there.store, snapshot) as fetcher:
            yield there, fetcher, content


async def test_a_pager_gets_the_frames_that_it_wants(attached: tuple[Node, Fetcher, bytes]) -> None:
    node, fetcher, content = attached
    assert fetcher.partial
    await asyncio.wait_for(asyncio.gather(*(fetcher.want([(0, n), (0, 15 - n)]) for n in range(8))), DEADLINE_S)
    assert not fetcher.partial
    (path,) = [path for path in (node.root / "cache").iterdir() if len(path.name) == 64]
    with Layer(path) as layer:  # what the pager opens
        assert b"".join(map(layer.frame, range(16))) == content


async def test_whoever_stops_waiting_stops_nobody_else(attached: tuple[Node, Fetcher, bytes]) -> None:
    _, fetcher, _ = attached
    impatient = asyncio.create_task(fetcher.want([(0, 3)]))
    patient = asyncio.create_task(fetcher.want([(0, 3)]))
    await asyncio.sleep(0)
    impatient.cancel()
    await asyncio.wait_for(patient, DEADLINE_S)
    with pytest.raises(asyncio.CancelledError):
        await impatient


async def test_what_a_pager_cannot_want(attached: tuple[Node, Fetcher, bytes]) -> None:
    node, fetcher, _ = attached
    for frame in ((1, 0), (-1, 0), (0, 16), (0, -1)):
        with pytest.raises(InvalidValue, match="has no frame"):
            await fetcher.want([frame])
    node.counted.clear()
    node.cache.close()
    with pytest.raises(Unavailable):
        await fetcher.want([(0, 0)])
