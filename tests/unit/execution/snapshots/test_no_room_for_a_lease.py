"""Where there is no room for one more file: reading goes on, nothing that is read goes, nobody waits for himself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.errors import Conflict, NoSpace
from perdure.execution.snapshots import ingest, restore, transfer
from perdure.execution.snapshots.care import garbage, verify
from perdure.execution.snapshots.store import Store
from perdure.reports import Swept
from perdure.testing import smalldisks
from perdure.testing.places import DISK, Place, restored
from perdure.testing.snapshots import facts
from perdure.testing.stores import DEADLINE_S, Node

READER = """
import sys
from pathlib import Path
from perdure.execution.snapshots.store import Store
with Store(Path(sys.argv[1])).reading(sys.argv[2]):
    print("reading", flush=True)
    sys.stdin.read()
"""
pytestmark = pytest.mark.timeout(60)  # who waits for himself waits for ever


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    with smalldisks.mounted(tmp_path / "small", 16) as folder:
        yield folder


@pytest.fixture
def place(small: Path) -> Iterator[Place]:
    place = Place(small)
    with place.here, place.there:
        place.push(place.first)
        place.push()
        yield place


def collected(node: Node, *named: str) -> Swept:
    return garbage.collect(
        node.store, named=named.__contains__, templates=node.templates, templates_in_use=lambda: set()
    )


def test_who_reads_one_and_deletes_another_does_not_wait_for_himself(place: Place, small: Path) -> None:
    """As a compaction does. What it gives up goes later."""
    store = place.here.store
    smalldisks.fill_names(small, 0)
    with store.reading(place.snapshot.digest):
        assert store.remove([place.first.digest]) == 0
        assert store.sweep(lambda digest: digest == place.first.digest, dry_run=True).leased == [place.first.digest]
        assert store.digests() == [place.first.digest, place.snapshot.digest]
        with pytest.raises(Conflict, match="no room to write down which one"):
            transfer.evict(store, place.first, place.remote)
    assert (place.here.templates / "warm").exists()
    smalldisks.clear(small)
    smalldisks.fill_names(small, 1)  # the index that replaces the other
    assert store.remove([place.first.digest]) > 0
    assert restored(place.here, place.snapshot) == (place.content, DISK)


def test_nothing_goes_while_another_process_reads_it_knows_not_what(place: Place, small: Path) -> None:
    node, first = place.here, place.first
    folder = node.root / "restored"
    folder.mkdir()
    smalldisks.fill_names(small, 0)
    argv = [sys.executable, "-c", READER, str(node.store.folder), first.digest]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"reading\n"
        assert list((node.store.folder / "leases").iterdir()) == []
        assert collected(node).leased == [first.digest, place.snapshot.digest]
        assert verify.whole(node.store, templates=node.templates).findings == []
        smalldisks.clear(small)
        found = collected(node)  # room that came since changes nothing for who reads already
        assert (found.forgotten, found.blobs, found.templates) == ([], 0, [])
        restore.prepare(node.store, first, folder=folder, templates=node.templates, facts=facts())
        reader.kill()
        reader.wait(DEADLINE_S)
    assert collected(node).forgotten == [first.digest, place.snapshot.digest]
    assert verify.whole(node.store, templates=node.templates).orphans == 0


def test_a_store_of_before_there_was_that_lease_opens_on_a_full_disk(place: Place, small: Path) -> None:
    store = place.here.store
    (store.folder / "lease.lock").unlink()
    smalldisks.fill_names(small, 0)
    again = Store(store.folder)
    with pytest.raises(NoSpace) as caught, again.reading(place.first.digest):
        pass
    assert "Free space" in caught.value.hint
    assert again.digests() == store.digests()
    smalldisks.clear(small)
    with Store(store.folder).reading(place.snapshot.digest):
        pass


def test_what_comes_from_another_store_is_refused_at_once(place: Place, small: Path) -> None:
    smalldisks.fill_names(small, 0)
    with pytest.raises(NoSpace, match="a lease"):
        place.pull()
    assert place.there.store.digests() == []
    assert place.there.left_over() == []
    smalldisks.clear(small)
    assert restored(place.there, place.pull()) == (place.content, DISK)


def test_a_claim_is_whole_or_refused(small: Path) -> None:
    """A disk takes the beginning of what does not fit: that claims nothing."""
    store = Store(small / "store")
    digests = [f"sha256:{number:064x}" for number in range(4096 // 72 + 2)]
    smalldisks.fill(small, 1)
    with store.writing():
        written = []
        with pytest.raises(OSError, match="No space left"):
            for digest in digests:
                store.claims.add(digest)
                written.append(digest)
        assert len(written) == 4096 // 72
        assert set(written) <= ingest.claimed(store.folder / "ingest")
