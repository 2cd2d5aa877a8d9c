"""Whoever writes to a store dies at every one of its durable steps, or meets a full disk at every page.

Afterwards: what was there restores to what it was, nothing half-made is seen, no temporary file is left once somebody
opened the store again, and the same action done again succeeds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perdure.errors import NoSpace
from perdure.execution.snapshots import restore, spaces, templates
from perdure.execution.snapshots.care import compact, garbage, verify
from perdure.execution.snapshots.store import Store
from perdure.formats.blockmap import BLOCK
from perdure.formats.manifest import Snapshot
from perdure.testing import dying
from perdure.testing.snapshots import BLOCKS, Bench, block, blocks_of, captured, facts, sparse_file

DISK_SEEDS = list(range(24))
STEPS_MAX = 200


class World:
    """A store with a line of three snapshots, and what a machine left to be captured beyond the last."""

    def __init__(self, root: Path) -> None:
        self.bench = Bench(root)
        self.template = self.bench.template(blocks_of([1] * BLOCKS))
        memory = dict.fromkeys(range(BLOCKS), 1)
        self.line: list[Snapshot] = []
        for generation in range(3):
            changed = {number: 100 * generation + number for number in range(generation, 30)}
            memory |= changed
            parent = self.line[-1] if self.line else self.template
            held = {number: block(seed) for number, seed in changed.items()}
            self.line.append(self.bench.capture(parent, held, blocks_of(DISK_SEEDS), working_set=(20, 3)))
        self.memory, self.disk = blocks_of(memory.values()), blocks_of(DISK_SEEDS)
        (root / "captured" / "memory").write_bytes(captured({5: block(999), 6: bytes(BLOCK)}, BLOCKS))
        sparse_file(root / "overlay", {2: block(888)}, len(DISK_SEEDS))

    def at(self, root: Path) -> Bench:
        """A copy of it, as the machine finds it after a crash: opened anew."""
        bench = Bench.__new__(Bench)
        bench.root, bench.blocks, bench.templates = root, BLOCKS, root / "templates"
        bench.store = Store(root / "store")
        return bench

    def check(self, bench: Bench) -> set[str]:
        """The last snapshot is what it was, and nothing is wrong anywhere; which others there are."""
        last = self.line[-1].digest
        assert bench.left_over() == []
        found = verify.whole(bench.store, templates=bench.templates)
        assert found.findings == []
        every = bench.store.digests()
        same = [one for one in map(bench.store.get, every) if one.digest == last or last in one.config.replaces]
        assert same[0].digest == last
        for one in same:
            target = bench.root / "restored"
            target.mkdir(exist_ok=True)
            files = restore.prepare(bench.store, one, folder=target, templates=bench.templates, facts=facts())
            assert files.overlay.read_bytes() == self.disk
            with spaces.memory_of(bench.store, one, templates.load(bench.templates, "warm")) as space:
                assert space.read(0, BLOCKS) == self.memory
        return set(every) - {one.digest for one in self.line}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("action", ["capture", "compact", "collect"])
def test_the_writer_dies_at_every_durable_step(world: World, tmp_path: Path, action: str, done: bool) -> None:
    last = world.line[-1].digest
    for at in range(1, STEPS_MAX):
        root = tmp_path / str(at)
        shutil.copytree(world.bench.root, root)
        status = dying.run(root, action, last, at, done=done)
        bench = world.at(root)
        made = world.check(bench)
        if status == 0:
            break
        assert status == dying.KILLED
        assert dying.run(root, action, last, 0, done=False) == 0  # a new process does it again
        made = world.check(bench)
        # a capture that died after its snapshot was registered, done again, is another one
        assert len(made) in {"capture": (1, 2), "compact": (1,), "collect": (0,)}[action]
        kept = {last} | made
        garbage.collect(bench.store, named=kept.__contains__)
        assert verify.whole(bench.store, templates=bench.templates).orphans == 0
        shutil.rmtree(root)
    assert 10 < at < STEPS_MAX - 1


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, pages: int) -> None:
    """Leave room for so many pages."""
    facts = os.statvfs(folder)
    with (folder / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, (facts.f_bavail - pages) * facts.f_bsize)
    assert os.statvfs(folder).f_bavail == pages


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
        fill(small, pages)
        try:
            acts[action]()
        except NoSpace as error:
            assert "Free space" in error.hint
            assert bench.left_over() == []
            assert set(bench.store.digests()) == before
            (small / "filler").unlink()
            assert world.check(bench) == set()
            bench.store.sweep(lambda digest: False)  # blobs that were complete, and that nobody names now
        else:
            break
    (small / "filler").unlink()
    assert 3 < pages < STEPS_MAX - 1
    assert len(world.check(bench)) == (action != "restore")
