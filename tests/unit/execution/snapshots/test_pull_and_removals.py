"""A pull waits for another machine, perhaps for long: who deletes does not wait with it, and takes nothing of it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from perdure.errors import Conflict, NotFound
from perdure.execution.registry import download
from perdure.execution.snapshots import transfer
from perdure.execution.snapshots.care import garbage, verify
from perdure.execution.snapshots.store import Store
from perdure.formats.manifest import Snapshot
from perdure.reports import Swept
from perdure.testing.places import DISK, Place, Stalling, restored
from perdure.testing.stores import DEADLINE_S, Node, block

COLLECTOR = """
import sys
from pathlib import Path
from perdure.execution.snapshots.care import garbage
from perdure.execution.snapshots.store import Store
root = Path(sys.argv[1])
garbage.collect(
    Store(root / "store"), named=lambda digest: False, templates=root / "templates", templates_in_use=lambda: set()
)
"""


@contextmanager
def stalled(place: Place, digest: str, how: str = "pull") -> Iterator[tuple[Stalling, Future[Snapshot]]]:
    """While a pull waits for this blob."""
    place.remote = Stalling(place.remote.inner, digest)
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(getattr(place, how))
        try:
            assert place.remote.reached.wait(DEADLINE_S), coming.exception(0)
            yield place.remote, coming
        finally:
            place.remote.over.set()


def collected(node: Node) -> Swept:
    """Nobody names anything."""
    return garbage.collect(
        node.store, named=lambda digest: False, templates=node.templates, templates_in_use=lambda: set()
    )


def collected_by_another_process(node: Node) -> None:
    subprocess.run([sys.executable, "-c", COLLECTOR, str(node.root)], check=True, timeout=DEADLINE_S)


def blobs(store: Store) -> set[str]:
    return {f"sha256:{path.name}" for path in (store.folder / "blobs/sha256").iterdir()}


def times(remote: Stalling, snapshot: Snapshot) -> dict[str, int]:
    """How often each of its blobs was read."""
    read = [f"sha256:{digest}" for digest, _, _ in remote.ranges]
    return {blob.digest: read.count(blob.digest) for blob in snapshot.descriptors}


def last_of_its_own(place: Place) -> str:
    """The blob of the second snapshot that comes last, where one comes after the other."""
    return [blob.digest for blob in place.snapshot.descriptors if blob not in place.first.descriptors][-1]


@pytest.mark.parametrize("part", ["layer", "template", "image"])
def test_removals_and_collections_end_while_a_pull_stalls(place: Place, part: str) -> None:
    place.push()
    there = place.there
    own = there.capture(there.template(block(9) * 256, "own"), {1: block(8)}, DISK)
    other = there.capture(own, {2: block(7)}, DISK)
    digest = {
        "layer": place.snapshot.memory.layers[0].digest,
        "template": transfer.template_artifact.parcel(place.template).blobs[1][0].digest,
        "image": transfer.image_artifact.parcel(place.here.images, place.image).blobs[1][0].digest,
    }[part]
    with stalled(place, digest) as (remote, coming):
        assert there.store.remove([other.digest]) > 0
        assert collected(there).forgotten == [own.digest]
        collected_by_another_process(there)
        assert there.store.digests() == []
        assert not coming.done()
        assert len(there.left_over()) == (part == "layer")  # of the blob that comes, whoever swept
        remote.over.set()
        assert restored(there, coming.result(DEADLINE_S)) == (place.content, DISK)
    assert max(times(remote, place.snapshot).values()) == 1
    assert there.left_over() == []


def test_what_a_pull_needs_stays_whoever_gives_it_up(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was here when it began, what came since, and the template below it."""
    monkeypatch.setattr(download, "BLOBS", 1)
    place.push(place.first)
    place.push()
    there = place.there
    place.pull(reference=transfer.tag_of(place.first.digest))
    with stalled(place, last_of_its_own(place)) as (remote, coming):
        there.store.remove([place.first.digest])
        assert collected(there).templates == []
        collected_by_another_process(there)
        with pytest.raises(NotFound):
            there.store.get(place.first.digest)
        wanted = {blob.digest for blob in place.snapshot.descriptors}
        assert wanted - blobs(there.store) == {remote.digest}
        assert there.store.digests() == []  # nor is it there yet
        remote.over.set()
        assert restored(there, coming.result(DEADLINE_S)) == (place.content, DISK)
    assert set(times(remote, place.first).values()) == {0}
    assert set(times(remote, place.snapshot).values()) == {0, 1}
    assert there.store.working_set(place.snapshot.digest) == [4, 5, 77]
    assert verify.whole(there.store, templates=there.templates).findings == []


def test_what_a_pull_needs_is_not_evicted(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "BLOBS", 1)
    place.push(place.first)
    place.push()
    there, inner = place.there, place.remote.inner
    first = place.pull(reference=transfer.tag_of(place.first.digest))
    with stalled(place, last_of_its_own(place)) as (remote, coming):
        with pytest.raises(Conflict, match="pulled"):
            transfer.evict(there.store, first, inner)
        remote.over.set()
        assert restored(there, coming.result(DEADLINE_S)) == (place.content, DISK)
    assert transfer.evict(there.store, first, inner) > 0


def test_notes_of_an_attach_stay_until_it_is_registered(place: Place) -> None:
    place.push()
    with stalled(place, place.snapshot.state.digest, "attach") as (remote, coming):
        collected_by_another_process(place.there)
        remote.over.set()
        attached = coming.result(DEADLINE_S)
    assert all(place.there.store.place(layer) for layer in attached.memory.layers)
    assert restored(place.there, attached) == (place.content, DISK)


def test_what_a_pull_brought_that_failed_goes_with_the_next_sweep(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "BLOBS", 1)
    place.push()
    path = place.remote.inner.folder / "blobs/sha256" / place.snapshot.state.digest.removeprefix("sha256:")
    path.rename(path.with_name("away"))
    with pytest.raises(NotFound):
        place.pull()
    there = place.there
    assert there.left_over() == []
    assert place.snapshot.memory.layers[0].digest in blobs(there.store)  # is skipped the next time
    assert len(collected(there).templates) == 1
    assert blobs(there.store) == set()
    assert list((there.store.folder / "leases").iterdir()) == []


@pytest.mark.parametrize("how", ["pull", "attach"])
def test_a_pull_ends_well_although_another_removes_it_at_once(
    place: Place, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """It was brought. That it is gone is told to who asks for it then."""
    place.push()
    store = place.there.store
    arriving = store.arriving

    @contextmanager
    def removed_at_once(data: bytes, config: bytes) -> Iterator[None]:
        with arriving(data, config):
            yield
        store.remove([place.snapshot.digest])

    monkeypatch.setattr(store, "arriving", removed_at_once)
    assert getattr(place, how)() == place.snapshot
    assert store.digests() == []
    with pytest.raises(NotFound):
        store.get(place.snapshot.digest)


def test_two_pulls_of_the_same_beside_removals_and_sweeps(place: Place) -> None:
    """Whatever their order: what a pull has returned restores for as long as somebody names it."""
    place.push(place.first)
    place.push()
    there, over = place.there, threading.Event()
    references = [transfer.tag_of(one.digest) for one in (place.first, place.snapshot)]

    def sweeps() -> int:
        count = 0
        while not over.is_set():
            garbage.collect(
                Store(there.store.folder), named=lambda digest: False, templates=there.templates, templates_in_use=set
            )
            count += 1
        return count

    def pulls(reference: str) -> None:
        for _ in range(6):
            pulled = transfer.pull(
                Store(there.store.folder), there.templates, there.images, place.remote, reference, is_kept=True
            )
            with there.store.reading(pulled.digest):
                if pulled.digest in there.store.digests():  # else the other one has removed it since
                    assert verify.snapshot(there.store, pulled.digest, templates=there.templates).findings == []
            there.store.untag(transfer.kept_tag(pulled.digest))
            there.store.remove([pulled.digest])

    with ThreadPoolExecutor(4) as pool:
        sweeping = pool.submit(sweeps)
        try:
            for pulling in [pool.submit(pulls, reference) for reference in (*references, references[1])]:
                pulling.result()
        finally:
            over.set()
        assert sweeping.result() > 0
    collected(there)
    assert blobs(there.store) == set()
    assert there.left_over() == []


def test_a_damaged_manifest_or_config_is_brought_again(place: Place) -> None:
    place.push()
    place.pull()
    store = place.there.store
    data = store.blob_path(place.snapshot.digest).read_bytes()
    for path in [store.blob_path(place.snapshot.digest), store.blob_path(transfer.manifest.config_of(data).digest)]:
        path.write_bytes(os.urandom(8))
        assert restored(place.there, place.pull()) == (place.content, DISK)


def test_a_push_into_a_folder_holds_nobody_up(place: Place, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "source")
    folder, layer = place.remote.inner, place.snapshot.memory.layers[0]
    whole = place.here.store.blob_path(layer.digest).read_bytes()
    assert len(whole) > 200_000
    with ThreadPoolExecutor(1) as pool:
        putting = pool.submit(folder.put, layer, tmp_path / "source")
        with (tmp_path / "source").open("wb", buffering=0) as pipe:
            pipe.write(whole[:200_000])  # returns when most of it was read: a pipe has 64 KiB
            Store(folder.folder).sweep(lambda digest: True)
            assert len(list((folder.folder / "ingest").iterdir())) == 1
            pipe.write(whole[200_000:])
        putting.result(DEADLINE_S)
    assert folder.has(layer)
