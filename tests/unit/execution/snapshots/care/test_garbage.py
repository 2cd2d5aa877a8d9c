"""Garbage collection: what nobody needs goes, what anybody might need stays, whatever happens beside it."""

from __future__ import annotations

import fcntl
import random
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from perdure.errors import NotFound
from perdure.execution.snapshots import restore, templates
from perdure.execution.snapshots.care import garbage, verify
from perdure.execution.snapshots.store import Store
from perdure.formats import manifest
from perdure.formats.manifest import Snapshot
from perdure.reports import Swept
from perdure.testing.snapshots import BLOCKS, Bench, block, blocks_of, facts

DISK = blocks_of(range(20))


@pytest.fixture
def line(bench: Bench) -> list[Snapshot]:
    parent = bench.template(blocks_of([1] * BLOCKS))
    found: list[Snapshot] = []
    for number in range(4):
        changed = {place: block(100 * number + place) for place in range(number, 40)}
        found.append(bench.capture(found[-1] if found else parent, changed, DISK, working_set=(1, 2)))
    return found


def collect(bench: Bench, *named: Snapshot, **more: bool) -> Swept:
    names = {snapshot.digest for snapshot in named}
    return garbage.collect(
        bench.store, named=names.__contains__, templates=bench.templates, templates_in_use=set, **more
    )


def files(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def test_what_is_named_stays_whole(bench: Bench, line: list[Snapshot]) -> None:
    bench.store.add(b"left by a crash", "x/y")
    found = collect(bench, line[1], line[3])
    assert found.forgotten == [line[0].digest, line[2].digest]
    assert (found.working_sets, found.templates, found.unreadable) == (2, [], {})
    assert found.blob_bytes > 15
    assert bench.store.digests() == [line[1].digest, line[3].digest]
    after = verify.whole(bench.store, templates=bench.templates)
    assert (after.findings, after.orphans) == ([], 0)
    for snapshot in (line[1], line[3]):
        restore.prepare(bench.store, snapshot, folder=bench.root, templates=bench.templates, facts=facts())
        assert bench.store.working_set(snapshot.digest) == [1, 2]


def test_a_dry_run_says_the_same_and_does_nothing(bench: Bench, line: list[Snapshot]) -> None:
    bench.template(blocks_of([2] * BLOCKS), "other")
    (bench.store.folder / "ingest" / "1-dead").write_bytes(b"half a layer")
    before = files(bench.root)
    dry = collect(bench, line[3], dry_run=True)
    assert {name: size for name, size in files(bench.root).items() if not name.endswith("lock")} == {
        name: size for name, size in before.items() if not name.endswith("lock")
    }
    assert collect(bench, line[3]) == dry
    assert (dry.left_over, dry.templates, len(dry.forgotten)) == (1, ["other"], 3)
    assert dry.template_bytes > 0
    assert collect(bench, line[3]) == Swept()


def test_nothing_is_named(bench: Bench, line: list[Snapshot]) -> None:
    found = collect(bench)
    assert len(found.forgotten) == 4
    assert found.templates == ["warm"]
    assert [path for path in bench.templates.iterdir() if path.is_dir()] == []
    assert list((bench.store.folder / "blobs/sha256").iterdir()) == []
    assert list((bench.store.folder / "working-sets").iterdir()) == []


def test_tags_are_roots(bench: Bench, line: list[Snapshot]) -> None:
    size = bench.store.blob_path(line[2].digest).stat().st_size
    bench.store.tag("keep", manifest.Descriptor(media_type=manifest.MANIFEST, digest=line[2].digest, size=size))
    assert bench.store.tags() == {"keep": line[2].digest}
    collect(bench)
    assert bench.store.digests() == [line[2].digest]
    assert verify.whole(bench.store, templates=bench.templates).findings == []
    assert bench.templates.joinpath("warm").exists()


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_while_a_manifest_does_not_read_nothing_it_might_need_goes(
    bench: Bench, line: list[Snapshot], damage: str
) -> None:
    path = bench.store.blob_path(line[3].digest)
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    before = len(list((bench.store.folder / "blobs/sha256").iterdir()))
    bench.template(blocks_of([2] * BLOCKS), "other")
    found = collect(bench, line[3])
    assert list(found.unreadable) == [line[3].digest]
    assert (found.blobs, found.templates) == (0, [])
    assert len(list((bench.store.folder / "blobs/sha256").iterdir())) == before
    assert collect(bench).unreadable == {}  # nobody names it: it goes, and all that was kept for it
    assert list((bench.store.folder / "blobs/sha256").iterdir()) == []


def test_a_damaged_config_still_says_which_blobs_it_needs(bench: Bench, line: list[Snapshot]) -> None:
    config = manifest.config_of(bench.store.blob_path(line[3].digest).read_bytes())
    bench.store.blob_path(config.digest).write_bytes(b"{}")
    found = collect(bench, line[3])
    assert len(found.forgotten) == 3
    assert list(found.unreadable) == [line[3].digest]
    assert found.templates == []  # which one it lies over is not known
    for blob in line[3].descriptors:
        assert bench.store.blob_path(blob.digest).exists()


READER = """
import sys
from pathlib import Path
from perdure.execution.snapshots.store import Store
with Store(Path(sys.argv[1])).reading(sys.argv[2]):
    print("reading", flush=True)
    sys.stdin.read()
"""


def test_what_another_process_reads_stays_until_it_ends_or_dies(bench: Bench, line: list[Snapshot]) -> None:
    argv = [sys.executable, "-c", READER, str(bench.store.folder), line[1].digest]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        reader.stdout.readline()
        found = collect(bench, line[3])
        assert (found.leased, len(found.forgotten)) == ([line[1].digest], 2)
        restore.prepare(bench.store, line[1], folder=bench.root, templates=bench.templates, facts=facts())
        assert bench.store.remove([line[1].digest]) == 0
        assert bench.store.get(line[1].digest) == line[1]
        reader.kill()
        reader.wait()
    assert collect(bench, line[3]).forgotten == [line[1].digest]
    assert list((bench.store.folder / "leases").iterdir()) == []


WRITER = """
import sys
from pathlib import Path
from perdure.execution.snapshots.store import Store
store = Store(Path(sys.argv[1]))
with store.writing():
    store.add(b"its own", "x/y")
    store.add(b"what was there", "x/y")
    print("stored", flush=True)
    sys.stdin.read()
"""


def test_what_another_process_stores_stays_until_it_ends_or_dies(bench: Bench, line: list[Snapshot]) -> None:
    there = bench.store.add(b"what was there", "x/y")
    argv = [sys.executable, "-c", WRITER, str(bench.store.folder)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        bench.store.add(b"of one that is dead", "x/y")
        assert collect(bench, *line, dry_run=True).blobs == 1
        assert (collect(bench, *line).blobs, collect(bench, *line)) == (1, Swept())
        assert bench.store.read(there) == b"what was there"
        writer.kill()
        writer.wait()
    found = collect(bench, *line)
    assert (found.blobs, found.left_over) == (2, 1)
    assert bench.left_over() == []


def test_what_is_registered_stays_until_it_is_named(bench: Bench, line: list[Snapshot]) -> None:
    with bench.store.writing():
        made = bench.capture(line[3], {0: block(77)}, DISK)
        assert collect(bench, *line).leased == [made.digest]
        assert bench.store.get(made.digest) == made
    assert collect(bench, *line, made) == Swept()
    assert collect(bench, *line).forgotten == [made.digest]


def test_a_snapshot_is_not_registered_without_its_blobs(bench: Bench, line: list[Snapshot]) -> None:
    bench.store.blob_path(line[3].state.digest).unlink()
    config = msgspec.structs.replace(line[3].config, created=1.0)
    with pytest.raises(NotFound, match="removed meanwhile"):
        bench.store.register(msgspec.structs.replace(line[3], config=config))
    assert bench.store.digests() == [one.digest for one in line]


def test_captures_removals_restores_and_sweeps_at_once(bench: Bench, line: list[Snapshot]) -> None:
    """Whatever their order: everything that is named restores at any moment."""
    named, guard = {snapshot.digest for snapshot in line}, threading.Lock()
    failures: list[BaseException] = []
    over = threading.Event()

    def captures(seed: int) -> None:
        chance, bench_of_mine = random.Random(seed), Bench.__new__(Bench)
        bench_of_mine.root = bench.root / f"captures-{seed}"
        bench_of_mine.root.mkdir()
        bench_of_mine.blocks, bench_of_mine.templates = bench.blocks, bench.templates
        bench_of_mine.store = Store(bench.store.folder)
        parent = line[seed]
        for _ in range(12):
            changed = {chance.randrange(BLOCKS): block(chance.randrange(1, 1000)) for _ in range(20)}
            with bench_of_mine.store.writing():  # until it is named, as a sandbox does with its own lock
                made = bench_of_mine.capture(parent, changed, DISK, sandbox_id=f"s{seed}")
                with guard:
                    named.add(made.digest)
                    if parent is not line[seed]:
                        named.discard(parent.digest)
            parent = made
            (bench_of_mine.root / "restored").mkdir(exist_ok=True)
            with bench_of_mine.store.reading(made.digest):
                restore.prepare(
                    bench_of_mine.store, made, folder=bench_of_mine.root / "restored", templates=bench.templates,
                    facts=facts(),
                )  # fmt: skip

    def sweeps() -> None:
        def known(digest: str) -> bool:
            with guard:
                return digest in named

        store = Store(bench.store.folder)
        while not over.is_set():
            garbage.collect(store, named=known, templates=bench.templates, templates_in_use=set)

    def guarded(act: object, *values: int) -> None:
        try:
            act(*values)  # type: ignore[operator]
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=guarded, args=(captures, seed)) for seed in range(3)]
    sweeper = threading.Thread(target=guarded, args=(sweeps,))
    for thread in (*workers, sweeper):
        thread.start()
    for thread in workers:
        thread.join()
    over.set()
    sweeper.join()
    assert failures == []
    collect(bench, *(bench.store.get(digest) for digest in named))
    after = verify.whole(bench.store, templates=bench.templates)
    assert (after.findings, after.orphans, after.snapshots) == ([], 0, len(named))
    assert bench.left_over() == []


def test_templates_in_use_and_being_built_stay(bench: Bench, line: list[Snapshot]) -> None:
    for name in ("current", "old"):
        bench.template(blocks_of([3] * BLOCKS), name)
    for name in ("built.new", "built.0a1b2c3d.new", "dead.new", "dead.0a1b2c3d.new"):
        (bench.templates / name).mkdir()
    (bench.templates / "half.gone").mkdir()
    with (bench.templates / "built.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = garbage.collect(
            bench.store,
            named=lambda digest: True,
            templates=bench.templates,
            templates_in_use=lambda: {"current"},
        )
    assert found.templates == ["dead.0a1b2c3d.new", "dead.new", "half.gone", "old"]
    left = sorted(path.name for path in bench.templates.iterdir() if path.is_dir())
    assert left == ["built.0a1b2c3d.new", "built.new", "current", "warm"]
    unknown = garbage.collect(bench.store, named=lambda digest: False, templates=bench.templates)
    assert unknown.templates == []  # which are in use is not known
    assert len(unknown.forgotten) == 4


def test_a_removal_that_was_not_finished_stops_no_later_one(bench: Bench, line: list[Snapshot]) -> None:
    bench.template(blocks_of([3] * BLOCKS), "old")
    shutil.copytree(bench.templates / "old", bench.templates / "old.gone")  # by a node that was killed; then made anew
    assert collect(bench, line[3]).templates == ["old", "old.gone"]
    assert sorted(path.name for path in bench.templates.iterdir()) == ["warm"]


def test_a_start_takes_what_killed_builds_and_removals_of_templates_left(bench: Bench, line: list[Snapshot]) -> None:
    names = ("built.new", "built.0a1b2c3d.new", "dead.new", "dead.0a1b2c3d.new", "half.gone")
    for name in names:
        (bench.templates / name).mkdir()
        (bench.templates / name / "memory").write_bytes(b"some of it")
    warm = templates.load(bench.templates, "warm")
    warm.keep_working_set([3, 1])
    (bench.templates / "warm" / "working-set.0a1b2c3d").write_bytes(b"a part of the next one")
    with (bench.templates / "built.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        garbage.sweep_templates(bench.templates)
    left = sorted(path.name for path in bench.templates.iterdir())
    assert left == ["built.0a1b2c3d.new", "built.lock", "built.new", "warm"]
    assert templates.load(bench.templates, "warm").working_set() == [3, 1]
    assert [path.name for path in (bench.templates / "warm").glob("working-set*")] == ["working-set"]


def test_a_template_under_another_name_stays_for_its_content(bench: Bench, line: list[Snapshot]) -> None:
    """One that came from another machine is in a folder of its own; snapshots name it as it was called there."""
    (bench.templates / "warm").rename(bench.templates / "warm-0123456789abcdef")
    assert collect(bench, line[3]).templates == []
    assert (bench.templates / "warm-0123456789abcdef").exists()


def test_notes_on_layers_kept_elsewhere_go_with_them(bench: Bench, line: list[Snapshot]) -> None:
    folder = bench.store.folder / "remotes"
    folder.mkdir(exist_ok=True)
    names = [snapshot.memory.layers[-1].digest.removeprefix("sha256:") for snapshot in (line[0], line[3])]
    for name in names:
        (folder / name).write_text("{}")
    collect(bench, line[0])
    assert [path.name for path in folder.iterdir()] == names[:1]
    assert verify.whole(bench.store, templates=bench.templates).findings == []
