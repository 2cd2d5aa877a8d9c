"""Whoever writes to a store dies at every one of its durable steps, or meets a full disk at every page.

Afterwards: what was there restores to what it was, nothing half-made is seen, no temporary file is left once somebody
opened the store again, and the same action done again succeeds.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from perdure.errors import NoSpace, NotFound, SnapshotInvalid
from perdure.execution.snapshots import restore, spaces, templates, transfer
from perdure.execution.snapshots.care import compact, garbage, verify
from perdure.execution.snapshots.stores.folder import FolderStore
from perdure.formats.blockmap import BLOCK
from perdure.formats.manifest import Snapshot
from perdure.testing import dying, smalldisks
from perdure.testing.places import DISK as PLACE_DISK
from perdure.testing.places import Place, restored
from perdure.testing.sandboxes import sleeping
from perdure.testing.snapshots import BLOCKS, IMAGE, Bench, block, blocks_of, captured, facts, sparse_file
from perdure.testing.stores import Node

DISK_SEEDS = list(range(24))
BOX, FORK = "0123456789ab", "f0f0f0f0f0f0"
STEPS_MAX = 200


class World:
    """A store with a line of three snapshots, and what a machine left to be captured beyond the last.

    Sandbox ``box`` has the first two, ``fork`` the last, whose memory is also in the store ``remote``. No snapshot lies
    over template ``unused``.
    """

    def __init__(self, root: Path) -> None:
        self.bench = Node(root)
        self.template = self.bench.template(blocks_of([1] * BLOCKS))
        self.bench.template(blocks_of([2] * BLOCKS), "unused")
        memory = dict.fromkeys(range(BLOCKS), 1)
        self.line: list[Snapshot] = []
        self.memory: dict[str, bytes] = {}
        for generation in range(3):
            changed = {number: 100 * generation + number for number in range(generation, 30)}
            memory |= changed
            parent = self.line[-1] if self.line else self.template
            held = {number: block(seed) for number, seed in changed.items()}
            self.line.append(self.bench.capture(parent, held, blocks_of(DISK_SEEDS), working_set=(20, 3)))
            self.memory[self.line[-1].digest] = blocks_of(memory.values())
        self.disk = blocks_of(DISK_SEEDS)
        sleeping(root / "sandboxes", BOX, "box", self.line[:2])
        sleeping(root / "sandboxes", FORK, "fork", self.line[2:])
        remote = FolderStore(root / "remote")
        for layer in self.line[-1].memory.layers:
            remote.put(layer, self.bench.store.blob_path(layer.digest))
        self.bench.cache.close()
        (root / "captured" / "memory").write_bytes(captured({5: block(999), 6: bytes(BLOCK)}, BLOCKS))
        sparse_file(root / "overlay", {2: block(888)}, len(DISK_SEEDS))

    def at(self, root: Path) -> Node:
        """A copy of it, as the machine finds it after a crash: opened anew."""
        return Node(root)

    def check(self, bench: Bench) -> set[str]:
        """The last snapshot is there, all that are there are what they were, and nothing is wrong anywhere; which
        others there are."""
        last = self.line[-1].digest
        assert bench.left_over() == []
        found = verify.whole(bench.store, templates=bench.templates)
        assert found.findings == []
        every = bench.store.digests()
        assert last in every
        for one in map(bench.store.get, every):
            memory = self.memory.get(last if last in one.config.replaces else one.digest)
            if memory is None:
                continue  # captured beyond the last
            target = bench.root / "restored"
            target.mkdir(exist_ok=True)
            files = restore.prepare(bench.store, one, folder=target, templates=bench.templates, facts=facts())
            assert files.overlay.read_bytes() == self.disk
            with spaces.memory_of(bench.store, one, templates.load(bench.templates, "warm")) as space:
                assert space.read(0, BLOCKS) == memory
        return set(every) - self.memory.keys()

    def deaths(
        self, folder: Path, action: str, digest: str, done: bool, before: Callable[[Path], None] = lambda root: None
    ) -> Iterator[Path]:
        """A copy of the world for each durable step at which whoever did the action died in it."""
        for at in range(1, STEPS_MAX):
            root = folder / str(at)
            shutil.copytree(self.bench.root, root)
            before(root)
            status = dying.run(root, action, digest, at, done=done)
            if status == 0:
                assert at > 10
                return
            assert status == dying.KILLED
            yield root
            shutil.rmtree(root)
        raise AssertionError(f"{action} has more than {STEPS_MAX} steps")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("action", ["capture", "compact", "collect"])
def test_the_writer_dies_at_every_durable_step(world: World, tmp_path: Path, action: str, done: bool) -> None:
    last = world.line[-1].digest
    for root in world.deaths(tmp_path, action, last, done):
        bench = world.at(root)
        world.check(bench)
        with suppress(NotFound):
            templates.load(bench.templates, "unused")  # it is whole, or not there
        garbage.sweep_templates(bench.templates)  # as a node does when it starts
        assert folders(bench.templates) <= {"warm", "unused"}
        assert dying.run(root, action, last, 0, done=False) == 0  # a new process does it again
        made = world.check(bench)
        # a capture that died after its snapshot was registered, done again, is another one
        assert len(made) in {"capture": (1, 2), "compact": (1,), "collect": (0,)}[action]
        kept = {last} | made
        garbage.collect(bench.store, named=kept.__contains__)
        assert verify.whole(bench.store, templates=bench.templates).orphans == 0
        assert folders(bench.templates) == {"warm"} | ({"unused"} if action != "collect" else set())


@pytest.mark.timeout(300)
@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_whoever_removes_dies_at_every_durable_step(world: World, tmp_path: Path, done: bool) -> None:
    """The snapshots are all forgotten at once: either all of them are whole, or nothing names them any more."""
    first, second, last = (one.digest for one in world.line)
    outcomes = set()
    for root in world.deaths(tmp_path, "remove", last, done):
        bench = world.at(root)
        world.check(bench)
        outcomes.add(tuple(bench.store.digests()))
        assert dying.run(root, "remove", last, 0, done=False) == 0
        world.check(bench)
        assert bench.store.digests() == [last]
        bench.store.sweep(lambda digest: False)  # of one that died after it had forgotten them, this is the next one
        assert verify.whole(bench.store, templates=bench.templates).orphans == 0
        for part in ("working-sets", "leases"):
            assert {f"sha256:{path.name}" for path in (bench.store.folder / part).iterdir()} <= {last}
    assert outcomes == {(first, second, last), (last,)}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_whoever_evicts_dies_at_every_durable_step(world: World, tmp_path: Path, done: bool) -> None:
    """Every layer is here, or it is known where it is: the memory is the same in each case."""
    last = world.line[-1]
    outcomes = set()
    for root in world.deaths(tmp_path, "evict", last.digest, done):
        url = FolderStore(root / "remote").url

        def away(bench: Node, url: str = url) -> int:
            gone = [layer for layer in last.memory.layers if not bench.store.blob_path(layer.digest).exists()]
            assert {bench.store.place(layer) for layer in gone} <= {url}
            assert verify.whole(bench.store, templates=bench.templates).remote == sorted(one.digest for one in gone)
            return len(gone)

        with world.at(root) as bench:
            assert world.check(bench) == set()
            assert len(bench.store.digests()) == len(world.line)
            outcomes.add(away(bench))
            assert dying.run(root, "evict", last.digest, 0, done=False) == 0
        with world.at(root) as bench:
            world.check(bench)
            assert away(bench) == len(last.memory.layers)
            assert verify.whole(bench.store, templates=bench.templates).orphans == 0
    assert outcomes == set(range(len(last.memory.layers) + done))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("damaged", [False, True], ids=["new", "instead of a damaged one"])
def test_whoever_seals_a_template_dies_at_every_durable_step(
    world: World, tmp_path: Path, done: bool, damaged: bool
) -> None:
    memory = bytearray(blocks_of([1] * BLOCKS))
    for place, data in dying.SEALED_MEMORY.items():
        memory[place * BLOCK : (place + 1) * BLOCK] = data
    sparse_file(tmp_path / "overlay", dying.SEALED_DISK, dying.DISK_BLOCKS)

    def damage(root: Path) -> None:
        shutil.copytree(root / "templates" / "unused", root / "templates" / dying.SEALED)
        os.truncate(root / "templates" / dying.SEALED / "state", 3)

    def whole(bench: Bench) -> bool:
        try:
            made = templates.load(bench.templates, dying.SEALED)
        except (NotFound, SnapshotInvalid) as error:
            assert damaged or (isinstance(error, NotFound) and dying.SEALED not in folders(bench.templates))
            return False
        assert made.memory.read_bytes() == memory
        assert made.state.read_bytes() == b"state of the sealed one"
        assert made.overlay is not None
        assert made.overlay.read_bytes() == (tmp_path / "overlay").read_bytes()
        assert templates.described(bench.templates, dying.SEALED)[2] == IMAGE
        return True

    outcomes = set()
    for root in world.deaths(tmp_path, "seal", "", done, damage if damaged else lambda root: None):
        bench = world.at(root)
        world.check(bench)  # what lies over the others
        garbage.sweep_templates(bench.templates)  # as a node does when it starts
        outcomes.add(whole(bench))
        assert folders(bench.templates) - {dying.SEALED} == {"warm", "unused"}
        assert dying.run(root, "seal", "", 0, done=False) == 0
        assert whole(bench)
        garbage.sweep_templates(bench.templates)
        assert folders(bench.templates) == {"warm", "unused", dying.SEALED}
        assert {path.name for path in (bench.templates / dying.SEALED).iterdir()} == {
            "state", "memory", "map", "overlay", "template.json",
        }  # fmt: skip
    assert outcomes == {False, True}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("action", ["forget", "remove the sandbox"])
async def test_a_node_dies_at_every_durable_step_of_giving_up(
    world: World, tmp_path: Path, action: str, done: bool
) -> None:
    """The next node finds what the records name, whole, and drops what they do not."""
    first, second, last = (one.digest for one in world.line)
    after = {"forget": [second, last], "remove the sandbox": [last]}[action]
    outcomes = set()
    for root in world.deaths(tmp_path, action, first, done):
        bench = world.at(root)
        every = await dying.started(root, bench.store)
        named = [kept.info.digest for one in every.all() for kept in one.record.snapshots]
        assert sorted(bench.store.digests()) == sorted(named)
        assert set(named) in (set(world.memory), set(after))
        world.check(bench)
        outcomes.add(first in named)
        await every.leave()
        assert dying.run(root, action, first, 0, done=False) == 0
        every = await dying.started(root, bench.store)
        world.check(bench)
        assert bench.store.digests() == after
        bench.store.sweep(lambda digest: False)
        assert verify.whole(bench.store, templates=bench.templates).orphans == 0
        assert folders(root / "sandboxes") == ({FORK, BOX} if action == "forget" else {FORK})
        assert [path.name for path in root.glob("sandboxes/*/*.new")] == []
        await every.leave()
    assert outcomes == {False, True}


def folders(root: Path) -> set[str]:
    return {path.name for path in root.iterdir() if path.is_dir()}


@pytest.fixture(scope="module")
def pulling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A node that has pulled the first of two snapshots."""
    place = Place(tmp_path_factory.mktemp("pulling"))
    with place.here, place.there:
        place.push(place.first)
        place.push()
        place.pull(reference=transfer.tag_of(place.first.digest))
        yield place


@pytest.mark.timeout(300)
@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("has_first", [False, True], ids=["nothing-here", "first-here"])
def test_a_puller_dies_at_every_durable_step(pulling: Place, tmp_path: Path, has_first: bool, done: bool) -> None:
    first, second = pulling.first, pulling.snapshot
    named = {first.digest} if has_first else set()

    def checked(root: Path) -> set[str]:
        """Nothing is half there; the snapshots that are there restore."""
        with Node(root) as node:
            assert node.left_over() == []
            assert verify.whole(node.store, templates=node.templates).findings == []
            there = set(node.store.digests())
            if second.digest in there:
                assert restored(node, second) == (pulling.content, PLACE_DISK)
            if has_first:
                restored(node, first)
            return there

    for at in range(1, STEPS_MAX):
        root, swept = tmp_path / str(at), tmp_path / f"{at}-swept"
        if has_first:
            shutil.copytree(pulling.there.root, root)
        else:
            root.mkdir()
            (root / "templates").mkdir()
        (root / "remote").symlink_to(pulling.remote.inner.folder)
        status = dying.run(root, "pull", second.digest, at, done=done)
        there = checked(root)
        if status == 0:
            break
        assert status == dying.KILLED
        shutil.copytree(root, swept, symlinks=True)
        with Node(swept) as node:  # one that never comes back to it
            garbage.collect(
                node.store, named=named.__contains__, templates=node.templates, templates_in_use=lambda: set()
            )
            assert list((swept / "store/leases").iterdir()) == []
            assert verify.whole(node.store, templates=node.templates).orphans == 0
            assert checked(swept) == named | set(node.store.tags().values())
            assert len(list((swept / "templates").glob("*/"))) == bool(node.store.digests())
        assert dying.run(root, "pull", second.digest, 0, done=False) == 0  # and one that does
        assert checked(root) == named | {second.digest} >= there
        assert len(list((root / "templates").glob("*/"))) == 1
        shutil.rmtree(root)
        shutil.rmtree(swept)
    assert 10 < at < STEPS_MAX - 1


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    with smalldisks.mounted(tmp_path / "small", 16) as folder:
        yield folder


@pytest.mark.timeout(300)
@pytest.mark.parametrize("action", ["capture", "compact", "restore"])
def test_the_disk_is_full_at_every_page(world: World, small: Path, action: str) -> None:
    root = small / "world"
    shutil.copytree(world.bench.root, root)
    bench, last = world.at(root), world.line[-1]

    def packed() -> None:
        from perdure.execution.snapshots import capture

        capture.pack(
            bench.store, folder=root / "captured", overlay=root / "overlay", parent=last, templates=bench.templates,
            sandbox_id="0123456789ab", image_digest="",
        )  # fmt: skip

    def restored() -> None:
        target = root / "target"
        target.mkdir(exist_ok=True)
        try:
            restore.prepare(bench.store, last, folder=target, templates=bench.templates, facts=facts())
        finally:
            assert not [path for path in target.iterdir() if path.suffix == ".new"]
            shutil.rmtree(target)

    acts: dict[str, Callable[[], object]] = {
        "capture": packed,
        "compact": lambda: compact.compact(bench.store, last.digest, templates_folder=bench.templates),
        "restore": restored,
    }
    (root / "restored").mkdir(exist_ok=True)
    (root / "target").mkdir(exist_ok=True)
    before = set(bench.store.digests())
    with bench.store.reading(last.digest):
        pass  # the lease file is there: what is measured is what is written
    for pages in range(STEPS_MAX):
        smalldisks.fill(small, pages)
        try:
            acts[action]()
        except NoSpace as error:
            assert "Free space" in error.hint
            assert bench.left_over() == []
            assert set(bench.store.digests()) == before
            smalldisks.clear(small)
            assert world.check(bench) == set()
            bench.store.sweep(lambda digest: False)  # blobs that were complete, and that nobody names now
        else:
            break
    smalldisks.clear(small)
    assert 3 < pages < STEPS_MAX - 1
    assert len(world.check(bench)) == (action != "restore")
