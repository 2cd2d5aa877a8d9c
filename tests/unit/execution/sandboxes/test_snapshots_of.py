"""What a sandbox does with its snapshots between machines: compacted, given up, named by others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import Conflict, NoSpace, NotFound
from perdure.execution.images.library import ImageLibrary
from perdure.execution.sandboxes.needs import Needs
from perdure.execution.sandboxes.record import Folder, KeptSnapshot, Record
from perdure.execution.sandboxes.sandbox import Sandbox
from perdure.execution.sandboxes.sandboxes import Sandboxes
from perdure.execution.snapshots import ingest
from perdure.execution.snapshots.care import compact, garbage, verify
from perdure.execution.snapshots.store import Store
from perdure.formats.manifest import Snapshot
from perdure.host.paths import Home
from perdure.model import NodeEvent, SandboxSpec, SandboxState
from perdure.reports import Swept
from perdure.testing.snapshots import BLOCKS, Bench, block, blocks_of

BOX, FORK = "b0b0b0b0b0b0", "f0f0f0f0f0f0"
DISK = blocks_of(range(10))
Make = Callable[..., Sandbox]
DEADLINE_S = 20


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def line(bench: Bench) -> list[Snapshot]:
    template = bench.template(blocks_of([1] * BLOCKS))
    found: list[Snapshot] = []
    for number in range(2):
        changed = {place: block(100 * number + place) for place in range(10, 40)}
        found.append(bench.capture(found[-1] if found else template, changed, DISK, sandbox_id=BOX))
    return found


@pytest.fixture
async def every(bench: Bench, tmp_path: Path) -> Sandboxes:
    nothing: Any = None
    return Sandboxes(Home(tmp_path, tmp_path / "cache").make(), nothing, nothing, bench.store, nothing)


@pytest.fixture
def make(every: Sandboxes, tmp_path: Path) -> Make:
    """A sandbox with these snapshots."""

    def made(sandbox_id: str, snapshots: list[Snapshot], **more: Any) -> Sandbox:
        folder = Folder(tmp_path / "sandboxes" / sandbox_id)
        folder.root.mkdir()
        values: dict[str, Any] = {"state": SandboxState.SUSPENDED, "parent": snapshots[-1].digest}
        values |= {"spec": SandboxSpec(image="i")} | more
        record = Record(
            id=sandbox_id,
            name=sandbox_id[:3],
            image_digest="",
            created=1.0,
            snapshots=[KeptSnapshot(info=one.info(total_s=2.5), stdout=7) for one in snapshots],
            **values,
        )
        folder.save(record)
        sandbox = Sandbox(every._rooms, folder, record)
        every._sandboxes[sandbox_id] = sandbox
        return sandbox

    return made


def events(every: Sandboxes) -> list[NodeEvent]:
    return list(every.events.kept)


async def test_the_compacted_one_is_written_down(every: Sandboxes, make: Make, bench: Bench, line: Any) -> None:
    box = make(BOX, line)
    box.session_parent = line[1].digest
    done = await box.compact(line[1].digest)
    record = box.folder.load()
    assert record == box.record
    assert (record.parent, box.session_parent) == (done.after.digest, done.after.digest)
    assert record.snapshots[0].info.digest == line[0].digest
    kept = record.snapshots[1]
    assert (kept.info.digest, kept.info.total_s, kept.stdout) == (done.after.digest, 2.5, 7)
    assert kept.formerly == [line[1].digest]
    assert [one.digests for one in box.info().held] == [[line[0].digest], [kept.info.digest, line[1].digest]]
    assert record.snapshot(line[1].digest) == kept == record.snapshot(line[1].digest[:20])
    assert bench.store.digests() == [line[0].digest, done.after.digest]
    assert done.freed_bytes > 0
    assert [event.kind for event in events(every)] == ["sandbox.compacted"]
    again = await box.compact(line[1].digest)  # by its former name
    assert (again.after.digest, again.freed_bytes) == (done.after.digest, 0)
    older = await box.compact(line[0].digest)
    assert box.record.parent == done.after.digest != older.after.digest


@pytest.mark.parametrize("state", [SandboxState.RUNNING, SandboxState.STARTING, SandboxState.RESUMING])
async def test_not_while_a_machine_may_read_the_layers(make: Make, line: Any, state: SandboxState) -> None:
    box = make(BOX, line, state=state)
    with pytest.raises(Conflict, match="may read the layers") as caught:
        await box.compact(line[1].digest)
    assert "fcrun suspend" in caught.value.hint
    with pytest.raises(NotFound, match="has no snapshot"):
        await make(FORK, line).compact("sha256:" + "0" * 64)


async def test_a_full_disk_leaves_the_old_one(make: Make, bench: Bench, line: Any) -> None:
    box = make(BOX, line)

    def full(record: Record) -> None:
        raise NoSpace("no space left")

    box.folder.save = full  # type: ignore[method-assign]
    with pytest.raises(NoSpace):
        await box.compact(line[1].digest)
    assert box.record.parent == line[1].digest
    assert bench.store.digests() == [one.digest for one in line]
    assert bench.left_over() == []


async def test_what_a_fork_names_stays(make: Make, bench: Bench, line: Any) -> None:
    box, fork = make(BOX, line), make(FORK, line[:1])
    await box.compact(line[0].digest)
    assert line[0].digest in bench.store.digests()
    assert await box.forget(line[1].digest, force=True) > 0
    await box.remove()
    assert line[0].digest in bench.store.digests()
    assert fork.record.names(line[0].digest)
    await fork.remove()
    assert bench.store.digests() == []


async def test_what_a_fork_comes_to_name_while_its_removal_waits_stays(make: Make, bench: Bench, line: Any) -> None:
    """Somebody has the store for a moment; meanwhile a fork is made of what is being given up."""
    box = make(BOX, line)
    writes, waits, forked = threading.Event(), asyncio.Event(), threading.Event()

    def write() -> None:
        with Store(bench.store.folder).moment():
            writes.set()
            assert forked.wait(DEADLINE_S)

    writing = asyncio.create_task(asyncio.to_thread(write))
    assert await asyncio.to_thread(writes.wait, DEADLINE_S)
    loop = asyncio.get_running_loop()

    def waiting() -> None:
        loop.call_soon_threadsafe(waits.set)

    bench.store.before_deleting = waiting
    forgetting = asyncio.create_task(box.forget(line[0].digest))
    async with asyncio.timeout(DEADLINE_S):
        await waits.wait()
        fork = make(FORK, line[:1])
        forked.set()
        await writing
        assert await forgetting == 0
    assert not box.record.names(line[0].digest)
    assert bench.store.get(line[0].digest) == line[0]
    await fork.remove()
    assert bench.store.digests() == [line[1].digest]


class Collecting(Folder):
    """A sandbox's folder; in the moment before its record is saved somebody collects what nobody names by then."""

    def __init__(self, root: Path, collect: Callable[[], Swept]) -> None:
        super().__init__(root)
        self._collect = collect
        self.swept: list[Swept] = []

    def save(self, record: Record) -> None:
        self.swept.append(self._collect())
        super().save(record)


@pytest.fixture
def collected(every: Sandboxes, bench: Bench) -> Callable[[Sandbox], Collecting]:
    """From now on collections come between a sandbox and its record."""

    def watched(sandbox: Sandbox) -> Collecting:
        folder = Collecting(sandbox.folder.root, lambda: garbage.collect(bench.store, named=every.needs.names))
        sandbox.folder = folder
        return folder

    return watched


async def test_no_collection_takes_a_compacted_one_before_it_is_named(
    make: Make, bench: Bench, line: Any, collected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a fork above all: what it has is its origin's, which is not busy, so nobody else seems to need the new one."""
    make(BOX, line)
    fork = make(FORK, line[1:])
    folder = collected(fork)
    leased = bench.store.reading
    is_written = []

    def reading(digest: str) -> Any:
        if digest not in {one.digest for one in line}:
            is_written.append(digest in ingest.claimed(bench.store.folder / "ingest"))
        return leased(digest)

    monkeypatch.setattr(bench.store, "reading", reading)
    done = await fork.compact(line[1].digest)
    assert done.after.digest != line[1].digest
    (swept,) = folder.swept
    assert (swept.forgotten, swept.leased) == ([], [done.after.digest])
    assert is_written == [True]  # nor does one between the moment in which it is there and that in which it is leased
    assert fork.folder.load().parent == done.after.digest
    assert bench.store.digests() == [line[0].digest, line[1].digest, done.after.digest]
    assert verify.whole(bench.store, templates=bench.templates).findings == []


async def test_nor_one_that_was_made_in_the_background(make: Make, bench: Bench, line: Any, collected: Any) -> None:
    make(BOX, line)
    fork = make(FORK, line[1:])
    made = compact.compact(bench.store, line[1].digest, templates_folder=bench.templates)
    folder = collected(fork)
    done = await fork.take_compacted(line[1].digest, made.digest)
    (swept,) = folder.swept
    assert (swept.forgotten, swept.leased) == ([], [made.digest])
    assert (done.after, fork.record.parent) == (made, made.digest)
    assert verify.whole(bench.store, templates=bench.templates).findings == []


async def test_one_that_was_collected_before_anybody_held_it_is_not_named(make: Make, bench: Bench, line: Any) -> None:
    box = make(BOX, line)
    before = box.record
    made = compact.compact(bench.store, line[1].digest, templates_folder=bench.templates)
    bench.store.remove([made.digest])
    with pytest.raises(NotFound, match="collected before anybody named it"):
        await box.take_compacted(line[1].digest, made.digest)
    assert box.record == box.folder.load() == before
    assert verify.whole(bench.store, templates=bench.templates).findings == []


async def test_giving_one_up(make: Make, bench: Bench, line: Any) -> None:
    box = make(BOX, line)
    with pytest.raises(Conflict, match="is suspended to") as caught:
        await box.forget(line[1].digest)
    assert "--force" in caught.value.hint
    assert await box.forget(line[0].digest) >= 0
    with pytest.raises(Conflict, match="all that there is") as caught:
        await box.forget(line[1].digest, force=True)
    assert "fcrun rm" in caught.value.hint
    with pytest.raises(NotFound):
        await box.forget(line[0].digest)
    assert bench.store.digests() == [line[1].digest]


async def test_giving_up_while_it_runs(make: Make, bench: Bench, line: Any) -> None:
    box = make(BOX, line, state=SandboxState.RUNNING)
    with pytest.raises(Conflict, match="runs over snapshot"):
        await box.forget(line[1].digest, force=True)
    await box.forget(line[0].digest)
    assert bench.store.get(line[1].digest) == line[1]
    ended = make(FORK, line[1:], state=SandboxState.EXITED)
    await ended.forget(line[1].digest)  # nothing goes on from it but by a wish
    assert (ended.record.parent, ended.record.snapshots) == (None, [])
    assert bench.store.get(line[1].digest) == line[1]  # the other one runs over it


async def test_who_names_what(every: Sandboxes, make: Make, bench: Bench, line: Any) -> None:
    box = make(BOX, line[:1])
    assert every.needs.names(line[0].digest)
    assert not every.needs.names(line[1].digest)  # stored by a suspend that did not live to write it down
    async with box.moving:  # … or that is about to
        assert every.needs.names(line[1].digest)
    make(FORK, line[:1], parent=line[1].digest)
    assert every.needs.names(line[1].digest)


async def test_a_collection_waits_for_no_use_case_and_takes_nothing_of_it(
    every: Sandboxes, make: Make, bench: Bench, line: Any
) -> None:
    """The snapshot is registered, its record not yet saved: a sweep in this moment leaves it."""
    box = make(BOX, line[:1])
    async with box.moving:
        swept = await asyncio.to_thread(lambda: garbage.collect(bench.store, named=every.needs.names))
        assert swept.forgotten == []
        box.save(snapshots=[*box.record.snapshots, KeptSnapshot(info=line[1].info())], parent=line[1].digest)
    swept = await asyncio.to_thread(lambda: garbage.collect(bench.store, named=every.needs.names))
    assert swept.forgotten == []


async def test_unnamed_ones_are_dropped_at_a_start_unless_a_fork_names_them(
    every: Sandboxes, make: Make, bench: Bench, line: Any
) -> None:
    make(BOX, line[:1])
    lost = bench.capture(line[1], {3: block(4)}, DISK, sandbox_id=BOX)
    make(FORK, line[:1], parent=line[1].digest)
    await asyncio.to_thread(every.needs.drop_unnamed)
    assert bench.store.digests() == [line[0].digest, line[1].digest]
    assert lost.digest not in bench.store.digests()


@pytest.mark.parametrize(
    ("current", "expected"), [(None, None), (set(), {"warm", "old"}), ({"new"}, {"warm", "old", "new"})]
)
async def test_templates_in_use(
    every: Sandboxes, make: Make, bench: Bench, line: Any, current: Any, expected: Any, tmp_path: Path
) -> None:
    """A running sandbox has no snapshot that names its template; without any of today's it is needed all the same."""

    class Ground:
        def templates_in_use(self, images: Any) -> Any:
            return current

    ground: Any = Ground()
    home, images = Home(tmp_path, tmp_path / "cache"), ImageLibrary(tmp_path / "images")
    needs = Needs(home, ground, images, bench.store, every._sandboxes)
    make(BOX, line, template="warm")
    make(FORK, line, template="old", state=SandboxState.RUNNING)
    assert needs.templates_in_use() == expected


async def test_what_died_is_there_after_restarts_of_the_node(make: Make, bench: Bench, line: Any) -> None:
    """Also where it was to be removed once it is over: with a snapshot it is not."""
    goes: dict[str, Any] = {"spec": SandboxSpec(image="i", auto_remove=True)}
    box = make(BOX, line, state=SandboxState.RUNNING, **goes)
    for _ in range(2):
        await box.reconcile(None)
        await asyncio.gather(*box._tasks)
        assert (box.state, box.record.exit_status, box.folder.root.exists()) == (SandboxState.EXITED, None, True)
    ended = make(FORK, line, state=SandboxState.EXITED, exit_status=0, **goes)
    await ended.reconcile(None)
    assert not ended.folder.root.exists()


async def test_removal_waits_for_a_sweep_and_not_the_other_way(make: Make, bench: Bench, line: Any) -> None:
    """No two of them wait for each other, whatever they hold."""
    box = make(BOX, line)
    asked, go_on = threading.Event(), threading.Event()

    def named(digest: str) -> bool:
        asked.set()
        assert go_on.wait(20)
        return box.record.names(digest)

    sweeping = asyncio.create_task(asyncio.to_thread(lambda: garbage.collect(bench.store, named=named)))
    await asyncio.to_thread(asked.wait, 20)
    changed = box.changed.next
    removing = asyncio.create_task(box.remove())
    async with asyncio.timeout(20):
        await changed.wait()
    assert box.state is SandboxState.REMOVING  # it holds ``moving``, and now waits for the store
    go_on.set()
    async with asyncio.timeout(20):
        await sweeping
        await removing
    assert bench.store.digests() == []


async def test_what_is_read_while_its_sandbox_is_removed_goes_when_it_is_read(
    every: Sandboxes, make: Make, bench: Bench, line: Any
) -> None:
    """A pager that ends holds its lease for some moments more than its machine."""
    box = make(BOX, line[:1], state=SandboxState.EXITED)
    with bench.store.reading(line[0].digest):
        await box.drop([line[0].digest])
        assert line[0].digest in bench.store.digests()
        (later,) = every.needs._later
    await later
    assert line[0].digest not in bench.store.digests()
