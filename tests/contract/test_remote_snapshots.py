"""A snapshot's whole way over each kind of store: captured, pushed, evicted, and read on by ranges."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.execution.snapshots import restore, spaces, templates, transfer
from perdure.execution.snapshots.cache import GAP_BYTES
from perdure.execution.snapshots.fetching import Fetcher
from perdure.execution.snapshots.stores import open_store
from perdure.formats import memorymap
from perdure.formats.blockmap import BLOCK
from perdure.formats.manifest import Snapshot
from perdure.testing.snapshots import facts
from perdure.testing.stores import Node

GUEST_BLOCKS = 4096  # 16 MiB
DISK = random.Random(5).randbytes(20 * BLOCK)


class Way:
    """A node with a guest of 16 MiB that was captured three times, and another node; a store between them."""

    def __init__(self, root: Path, url: str) -> None:
        self.here, self.there = Node(root / "here", GUEST_BLOCKS), Node(root / "there", GUEST_BLOCKS)
        self.remote = open_store(url)
        noise = random.Random(4)
        memory = bytearray(noise.randbytes(1024 * BLOCK) + bytes((GUEST_BLOCKS - 1024) * BLOCK))
        latest = self.here.template(bytes(memory))
        image = self.here.image(b"a disk" * 1000)
        for generation in range(3):
            changed = {place: noise.randbytes(BLOCK) for place in noise.sample(range(GUEST_BLOCKS), 600)}
            changed |= {place: bytes(BLOCK) for place in range(100 * generation, 100 * generation + 50)}
            for place, data in changed.items():
                memory[place * BLOCK : (place + 1) * BLOCK] = data
            latest = self.here.capture(latest, changed, DISK, image=image, working_set=(7, 2000, 9))
        assert isinstance(latest, Snapshot)
        self.snapshot, self.memory = latest, bytes(memory)

    def push(self) -> transfer.Sent:
        here = self.here
        return transfer.push(here.store, here.templates, here.images, self.snapshot, self.remote)

    def attach(self) -> Snapshot:
        there, reference = self.there, transfer.tag_of(self.snapshot.digest)
        return transfer.attach(there.store, there.templates, there.images, self.remote, reference)

    def prepared(self, node: Node, snapshot: Snapshot) -> memorymap.MemoryMap:
        files = restore.prepare(
            node.store, snapshot, folder=node.root, templates=node.templates, facts=facts(GUEST_BLOCKS)
        )
        assert files.overlay.read_bytes() == DISK
        return memorymap.decode(files.memory_map.read_bytes())


@pytest.fixture
def way(tmp_path: Path, url: str) -> Iterator[Way]:
    way = Way(tmp_path, url)
    with way.here, way.there:
        yield way
    way.remote.close()


def test_pushed_evicted_and_read_by_ranges(way: Way) -> None:
    way.push()
    here = way.here
    assert transfer.evict(here.store, way.snapshot, way.remote) == sum(at.size for at in way.snapshot.memory.layers)
    template = templates.load(here.templates, way.snapshot.config.template, way.snapshot.config.template_digest)
    with spaces.memory_of(here.store, way.snapshot, template) as memory:
        counting = here.counted[way.remote.url]
        counting.ranges.clear()
        wanted = random.Random(6).sample(range(GUEST_BLOCKS), 20)
        for place in wanted:
            assert memory.read(place, place + 1) == way.memory[place * BLOCK : (place + 1) * BLOCK]
        # Only what was needed was read: nothing twice, and not much more than the frames of 20 blocks.
        assert len(counting.ranges) == len(set(counting.ranges)) <= 20
        fetched = {
            (at.path.name, number) for at in memory.layers for number in range(len(at.frames)) if at.present(number)
        }
        sizes = {
            (at.path.name, number): frame.compressed for at in memory.layers for number, frame in enumerate(at.frames)
        }
        assert counting.bytes_read == sum(sizes[frame] for frame in fetched)
        assert memory.read(0, GUEST_BLOCKS) == way.memory
        assert counting.bytes_read <= sum(sizes.values())


def test_attached_elsewhere_a_pager_wants_what_its_map_names(way: Way) -> None:
    """As a node does: the map is made, the pager asks for frames of it, the frames are in the layers' files."""
    way.push()
    attached = way.attach()
    assert way.there.store.working_set(attached.digest) == [7, 2000, 9]
    with Fetcher(way.there.store, attached) as fetcher:
        held = way.prepared(way.there, attached)
        counting = way.there.counted[way.remote.url]
        counting.ranges.clear()
        frames = list(zip(held.frame_layer, held.frame_number, strict=True))
        asyncio.run(fetcher.want(frames[::3]))
        for index in range(0, len(frames), 3):
            with Path(held.layers[held.frame_layer[index]]).open("rb") as file:
                file.seek(held.frame_offset[index] + held.frame_compressed[index] - 4)
                assert int.from_bytes(file.read(4), "little") == held.frame_checksum[index]
        needed = sum(held.frame_compressed[index] for index in range(0, len(frames), 3))
        gaps = GAP_BYTES * len(frames[::3])
        assert needed <= counting.bytes_read < needed + gaps
        asyncio.run(fetcher.want(frames))
        layers = fetcher._layers.values()
        assert not fetcher.partial or len(frames) < sum(len(layer.frames) for layer in layers)


def test_pulled_elsewhere_it_is_captured_and_pushed_on(way: Way) -> None:
    sent = way.push()
    there, reference = way.there, transfer.tag_of(way.snapshot.digest)
    pulled = transfer.pull(there.store, there.templates, there.images, way.remote, reference)
    assert pulled == way.snapshot
    following = there.capture(pulled, {5: b"5" * BLOCK}, DISK, image=pulled.config.image_digest)
    more = transfer.push(there.store, there.templates, there.images, following, way.remote)
    assert more.sent_bytes < sent.sent_bytes / 20
    back = transfer.pull(way.here.store, way.here.templates, way.here.images, way.remote, more.tags[-1])
    held = way.prepared(way.here, back)
    assert held.template == str(way.here.templates / "warm" / "memory")
