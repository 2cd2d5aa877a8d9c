"""The disk is really full at every page, and at every new file, of whatever writes to a node's folders.

It is said so (NoSpace, with what to do), nothing half-made is left, what was there works, and the same done again once
there is room succeeds. What only saves time is simply not there.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perdure.errors import NoSpace
from perdure.execution.snapshots import capture, spaces, templates, transfer
from perdure.execution.snapshots.care import verify
from perdure.formats.blockmap import BLOCK
from perdure.formats.manifest import Snapshot
from perdure.testing import dying, smalldisks
from perdure.testing.places import DISK, Place, restored
from perdure.testing.snapshots import BLOCKS, block, captured
from perdure.testing.stores import Node, Shelf, frame_of

pytestmark = pytest.mark.timeout(300)
SIZE_MIB = 16
ROOM_MAX = 600
LARGE_STEP = 16  # from 40 pages on: what is written then is one large file
full = pytest.mark.parametrize("full", ["pages", "names"])


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    with smalldisks.mounted(tmp_path / "small", SIZE_MIB) as folder:
        yield folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Both snapshots are pushed; the other node has pulled the first."""
    place = Place(tmp_path_factory.mktemp("place"))
    with place.here, place.there:
        place.push(place.first)
        place.push()
        place.pull(reference=transfer.tag_of(place.first.digest))
        yield place


def rooms(full: str) -> Iterator[int]:
    room = 0
    while room < ROOM_MAX:
        yield room
        room += 1 if room < 40 or full == "names" else LARGE_STEP
    raise AssertionError(f"no success with room for {room} {full}")


def fill(small: Path, full: str, room: int) -> None:
    (smalldisks.fill if full == "pages" else smalldisks.fill_names)(small, room)


def nothing_half_made(node: Node) -> None:
    assert node.left_over() == []
    assert not list(node.templates.glob("*.new"))
    assert not list((node.root / "images").glob("new-*"))
    assert not list((node.root / "cache").glob("*.new"))


def at_every_room(
    small: Path,
    full: str,
    begin: Callable[[Path], Node],
    act: Callable[[Node], object],
    check: Callable[[Node], object],
) -> int:
    """How often it was refused. ``begin`` makes what is there before, in a new folder; ``check``: after a refusal."""
    for refused, room in enumerate(rooms(full)):
        with begin(small / "node") as node:
            before = node.store.digests()
            fill(small, full, room)
            try:
                act(node)
            except NoSpace as error:
                assert error.hint
                nothing_half_made(node)
                assert node.store.digests() == before
                smalldisks.clear(small)
                check(node)
                act(node)
            else:
                return refused
            finally:
                smalldisks.clear(small)
                nothing_half_made(node)
                assert verify.whole(node.store, templates=node.templates).findings == []
        shutil.rmtree(small / "node")
    raise AssertionError("not reached")


@full
@pytest.mark.parametrize("has_first", [False, True], ids=["nothing-here", "first-here"])
@pytest.mark.parametrize("how", ["pull", "attach"])
def test_what_comes_from_another_store(place: Place, small: Path, how: str, has_first: bool, full: str) -> None:
    wanted = transfer.tag_of(place.snapshot.digest)

    def begin(root: Path) -> Node:
        if has_first:
            shutil.copytree(place.there.root, root)
        return Node(root)

    def act(node: Node) -> None:
        bring = getattr(transfer, how)
        came = bring(node.store, node.templates, node.images, place.remote, wanted, is_kept=True)
        assert came == place.snapshot

    def check(node: Node) -> None:
        if has_first:
            restored(node, place.first)

    assert at_every_room(small, full, begin, act, check) > 5
    with Node(small / "node") as node:
        assert restored(node, place.snapshot) == (place.content, DISK)


@full
def test_a_capture_with_a_working_set(place: Place, small: Path, tmp_path: Path, full: str) -> None:
    (tmp_path / "captured").mkdir()
    (tmp_path / "captured" / "memory").write_bytes(captured({5: block(999), 6: bytes(BLOCK)}, BLOCKS))
    (tmp_path / "captured" / "state").write_bytes(b"device state")
    (tmp_path / "overlay").write_bytes(block(998) + DISK[BLOCK:])
    made: list[Snapshot] = []

    def begin(root: Path) -> Node:
        shutil.copytree(place.here.root, root)
        return Node(root)

    def act(node: Node) -> None:
        made.append(
            capture.pack(
                node.store,
                folder=tmp_path / "captured",
                overlay=tmp_path / "overlay",
                parent=place.snapshot,
                templates=node.templates,
                sandbox_id="0123456789ab",
                image_digest=place.image,
                working_set=range(4000),  # several pages of it
            )
        )

    def check(node: Node) -> None:
        assert restored(node, place.snapshot) == (place.content, DISK)

    assert at_every_room(small, full, begin, act, check) > 2
    with Node(small / "node") as node:
        content = place.content[: 5 * BLOCK] + block(999) + bytes(BLOCK) + place.content[7 * BLOCK :]
        assert restored(node, made[-1]) == (content, block(998) + DISK[BLOCK:])


@full
def test_layers_that_are_evicted(place: Place, small: Path, full: str) -> None:
    def begin(root: Path) -> Node:
        shutil.copytree(place.here.root, root)
        shutil.rmtree(root / "store" / "remotes")
        return Node(root)

    def check(node: Node) -> None:
        assert restored(node, place.snapshot) == (place.content, DISK)

    assert at_every_room(
        small, full, begin, lambda node: transfer.evict(node.store, place.snapshot, place.remote), check
    )
    with Node(small / "node") as node:
        assert not any(node.store.blob_path(layer.digest).exists() for layer in place.snapshot.memory.layers)
        check(node)


@full
def test_frames_that_are_wanted(place: Place, small: Path, full: str) -> None:
    """Of an attached snapshot. What was fetched before stays."""

    def begin(root: Path) -> Node:
        node = Node(root)
        transfer.attach(
            node.store, node.templates, node.images, place.remote, transfer.tag_of(place.snapshot.digest), is_kept=True
        )
        node.cache.close()
        shutil.rmtree(root / "cache")  # also the indexes
        return Node(root)

    def act(node: Node) -> None:
        snapshot = place.snapshot
        template = templates.load(node.templates, snapshot.config.template, snapshot.config.template_digest)
        with spaces.memory_of(node.store, snapshot, template) as memory:
            assert memory.read(0, BLOCKS) == place.content

    def check(node: Node) -> None:
        files = {path.name for path in (node.root / "cache").iterdir()}
        layers = {layer.digest.removeprefix("sha256:") for layer in place.snapshot.memory.layers}
        assert files <= layers | {f"{name}.present" for name in layers}

    assert at_every_room(small, full, begin, act, check) > 2


@pytest.mark.parametrize(("full", "room"), [("pages", 0), ("names", 0), ("names", 1)])
def test_what_is_idle_in_the_cache_makes_room(small: Path, tmp_path: Path, full: str, room: int) -> None:
    shelf = Shelf(tmp_path)  # its layers are elsewhere
    (idle, _), (wanted, content) = shelf.layer(1), shelf.layer(2, frames=6)
    shelf.cache.close()
    shelf.root = small
    shelf.cache = shelf.opened()
    with shelf.open(idle) as layer:
        layer.fetch(range(8))
    shelf.settle()
    fill(small, full, room)
    with shelf.open(wanted) as layer:
        assert [layer.frame(number) for number in range(6)] == [frame_of(content, number) for number in range(6)]
    assert not shelf.path(idle).exists()
    assert not shelf.record(idle).exists()
    shelf.settle()
    with shelf.open(wanted) as layer:
        there = [layer.present(number) for number in range(6)]
        assert there == [(full, room) != ("names", 0)] * 6  # for a new record there was one name too few
    shelf.cache.close()


@full
def test_a_template_that_is_sealed(place: Place, small: Path, full: str) -> None:
    def begin(root: Path) -> Node:
        shutil.copytree(place.here.root, root)
        node = Node(root)
        (root / "host").mkdir(exist_ok=True)
        return node

    def check(node: Node) -> None:
        assert {path.name for path in node.templates.iterdir() if path.is_dir()} == {"warm"}
        assert restored(node, place.snapshot) == (place.content, DISK)

    assert at_every_room(small, full, begin, lambda node: asyncio.run(dying.seal(node.root)), check) > 3
    made = templates.load(small / "node" / "templates", dying.SEALED)
    memory = bytearray(templates.load(small / "node" / "templates", "warm").memory.read_bytes())
    for number, data in dying.SEALED_MEMORY.items():
        memory[number * BLOCK : (number + 1) * BLOCK] = data
    assert made.memory.read_bytes() == memory
