"""Snapshots that leave a machine and come to another one: the same bytes, or a reason and nothing half-done."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from perdure.errors import Conflict, InvalidValue, NoSpace, NotFound, SnapshotInvalid
from perdure.execution.snapshots import restore, spaces, templates, transfer
from perdure.execution.snapshots.store import Store
from perdure.execution.snapshots.stores.folder import FolderStore
from perdure.formats.blockmap import BLOCK
from perdure.testing.places import DISK, Place, restored
from perdure.testing.snapshots import BLOCKS, facts
from perdure.testing.stores import Counting, block


def test_what_was_pushed_is_pulled(place: Place) -> None:
    sent = place.push(tag="v1")
    assert sent.tags[-1] == "v1"
    pulled = place.pull(reference="v1")
    assert pulled == place.snapshot
    assert restored(place.there, pulled) == (place.content, DISK)
    assert place.there.store.working_set(pulled.digest) == [4, 5, 77]
    assert [held.digest for held in place.there.store.snapshots()] == [pulled.digest]
    image = place.there.images.get(place.image)
    assert (image.squashfs.read_bytes(), image.name) == (b"squashfs", "")
    made = place.here.templates / "warm"
    (came,) = [path for path in place.there.templates.iterdir() if path.is_dir()]
    for part in ("state", "memory", "map", "template.json"):
        assert (came / part).read_bytes() == (made / part).read_bytes()
    assert place.there.left_over() == []


def test_what_is_there_is_sent_and_brought_only_once(place: Place) -> None:
    first = place.push()
    assert (first.sent_bytes > 0, first.held_bytes) == (True, 0)
    place.remote.puts.clear()
    again = place.push(tag="other")
    assert (again.sent_bytes, again.held_bytes) == (0, first.sent_bytes)
    assert place.remote.puts == []
    place.pull()
    place.remote.ranges.clear()
    place.pull(reference="other")
    manifest = msgspec.json.decode(place.remote.manifest("other"))
    assert [digest for digest, _, _ in place.remote.ranges] == [manifest["config"]["digest"].removeprefix("sha256:")]


def test_progress_ends_at_its_total(place: Place) -> None:
    told: list[Any] = []
    here, there = place.here, place.there

    def tell(*what: object) -> None:
        told.append(what)

    transfer.push(here.store, here.templates, here.images, place.snapshot, place.remote, progress=tell)
    assert told[0][:2] == ("Pushing", 0)
    assert told[-1][1] == told[-1][2] > 0
    told.clear()
    reference = transfer.tag_of(place.snapshot.digest)
    transfer.pull(there.store, there.templates, there.images, place.remote, reference, tell)
    assert {what for what, _, _ in told} == {"Pulling"}
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def test_an_attached_snapshot_reads_frames_when_they_are_wanted(place: Place) -> None:
    place.push()
    attached = place.attach()
    store = place.there.store
    assert all(not store.blob_path(layer.digest).exists() for layer in attached.memory.layers)
    assert all(store.place(layer) == place.remote.url for layer in attached.memory.layers)
    counting = place.there.counted[place.remote.url]
    before = counting.bytes_read
    template = templates.load(place.there.templates, attached.config.template, attached.config.template_digest)
    with spaces.memory_of(store, attached, template) as memory:
        assert counting.bytes_read == before  # the indexes came with the attach
        assert all(layer.partial for layer in memory.layers)
        assert memory.read(4, 5) == block(900)
        top = memory.layers[-1]
        assert counting.bytes_read - before == top.frames[0].compressed
        assert top.present(0)
        assert not top.partial
        assert not memory.layers[0].present(0)
    assert restored(place.there, attached) == (place.content, DISK)
    after = counting.bytes_read
    assert restored(place.there, attached) == (place.content, DISK)
    assert counting.bytes_read == after  # nothing is read twice


def test_a_capture_over_an_attached_snapshot(place: Place) -> None:
    place.push()
    attached = place.attach()
    place.memory[9] = 31
    following = place.there.capture(attached, {9: block(31), 10: block(place.memory[10])}, DISK, image=place.image)
    assert following.config.parent == attached.digest
    assert restored(place.there, following) == (place.content, DISK)
    sent = transfer.push(place.there.store, place.there.templates, place.there.images, following, place.remote)
    assert sent.held_bytes > sent.sent_bytes
    pulled = place.pull(place.here, transfer.tag_of(following.digest))  # its template is the one that was made here
    assert restored(place.here, pulled) == (place.content, DISK)
    assert len([path for path in place.here.templates.iterdir() if path.is_dir()]) == 1


def test_evicted_is_as_attached(place: Place) -> None:
    store = place.here.store
    with pytest.raises(NotFound, match="does not hold layer"):
        transfer.evict(store, place.snapshot, place.remote)
    place.push()
    freed = transfer.evict(store, place.snapshot, place.remote)
    assert freed == sum(layer.size for layer in place.snapshot.memory.layers)
    assert all(not store.blob_path(layer.digest).exists() for layer in place.snapshot.memory.layers)
    assert restored(place.here, store.get(place.snapshot.digest)) == (place.content, DISK)
    assert transfer.evict(store, place.snapshot, place.remote) == 0
    pulled = place.pull(place.here)
    assert all(store.verified(layer) for layer in pulled.memory.layers)
    assert restored(place.here, pulled) == (place.content, DISK)


def test_notes_go_with_the_snapshots_that_need_them(place: Place) -> None:
    place.push()
    attached = place.attach()
    notes = place.there.store.folder / "remotes"
    assert len(list(notes.iterdir())) == len(attached.memory.layers)
    place.there.store.remove([attached.digest])
    assert list(notes.iterdir()) == []


def test_eviction_wants_the_same_bytes_there(place: Place) -> None:
    place.push()
    layer = place.snapshot.memory.layers[0]
    path = place.remote.inner.folder / "blobs" / "sha256" / layer.digest.removeprefix("sha256:")
    data = bytearray(path.read_bytes())
    data[-20] ^= 1  # in the seek table
    path.write_bytes(data)
    with pytest.raises(SnapshotInvalid):
        transfer.evict(place.here.store, place.snapshot, place.remote)
    assert restored(place.here, place.snapshot) == (place.content, DISK)


def test_a_template_made_here_under_the_same_name_is_another_one(place: Place) -> None:
    """Two machines with the same parts boot templates of one name and different contents."""
    place.push()
    own = place.there.template(b"".join(block(seed + 50) for seed in range(BLOCKS)))
    pulled = place.pull()
    assert restored(place.there, pulled) == (place.content, DISK)
    assert templates.load(place.there.templates, "warm").digest == own.digest
    files = restore.prepare(
        place.there.store, pulled, folder=place.there.root, templates=place.there.templates, facts=facts()
    )
    assert files.template.name == templates.adopted_name("warm", place.template.digest)  # what is made in tmpfs too


@pytest.mark.parametrize("part", ["memory layer", "disk layer", "config", "template", "image", "tag"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_store_that_lost_something_is_refused_and_leaves_nothing(place: Place, part: str, damage: str) -> None:
    place.push(tag="v1")
    folder = place.remote.inner.folder
    manifest = msgspec.json.decode(place.remote.manifest("v1"))

    def of(tag: str, number: int = 0) -> str:
        return str(msgspec.json.decode(place.remote.manifest(tag))["layers"][number]["digest"])

    digest = {
        "memory layer": place.snapshot.memory.layers[0].digest,
        "disk layer": place.snapshot.disk.layers[0].digest,
        "config": manifest["config"]["digest"],
        "template": of(f"template-{templates.adopted_name('warm', place.template.digest)}"),
        "image": of(f"image-{place.image.removeprefix('sha256:')[:32]}"),
        "tag": place.snapshot.digest,
    }[part]
    path = folder / "blobs" / "sha256" / digest.removeprefix("sha256:")
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(whole[:-1])
    else:
        path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises((SnapshotInvalid, NotFound)):
        place.pull(reference="v1")
    assert place.there.store.snapshots() == []
    assert place.there.left_over() == []
    assert [path for path in place.there.templates.iterdir() if path.name.endswith(".new")] == []
    path.write_bytes(whole)
    assert restored(place.there, place.pull(reference="v1")) == (place.content, DISK)


def test_a_damaged_blob_is_not_pushed_and_the_tag_stays(place: Place) -> None:
    path = place.here.store.blob_path(place.snapshot.memory.layers[1].digest)
    whole = path.read_bytes()
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(SnapshotInvalid, match="damaged or changed"):
        place.push(tag="v1")
    assert place.remote.tags() == []
    path.write_bytes(whole)
    place.push(tag="v1")
    assert "v1" in place.remote.tags()


def flip(path: Path, at: int = 0) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


def test_what_was_damaged_here_is_brought_again(place: Place) -> None:
    place.push()
    place.pull()
    store = place.there.store
    (template,) = [path for path in place.there.templates.iterdir() if path.is_dir()]
    damaged = [store.blob_path(place.snapshot.memory.layers[0].digest), store.blob_path(place.snapshot.state.digest)]
    for path in (*damaged, template / "memory"):
        flip(path, BLOCK if path.name == "memory" else 0)
    assert restored(place.there, place.pull()) == (place.content, DISK)


def test_a_damaged_template_is_replaced_by_a_whole_one_beside_it(place: Place) -> None:
    place.push()
    flip(place.here.templates / "warm" / "memory", BLOCK)
    with pytest.raises(SnapshotInvalid, match="template"):
        place.push()
    pulled = place.pull(place.here)
    assert restored(place.here, pulled) == (place.content, DISK)
    place.push()


@pytest.mark.parametrize("damage", ["layer", "manifest", "gone"])
def test_a_packed_template_that_was_damaged_is_packed_again(place: Place, tmp_path: Path, damage: str) -> None:
    place.push()
    packed = Store(place.here.templates / "warm" / "packed")
    manifest = packed.blob_path(next(iter(packed.tags().values())))
    path = manifest
    if damage == "layer":
        path = max((packed.folder / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    if damage == "gone":
        path.unlink()
    else:
        flip(path)
    place.remote = Counting(FolderStore(tmp_path / "another"))
    place.push()
    assert restored(place.there, place.pull()) == (place.content, DISK)


KILLED = """
import os, signal, sys, threading
from pathlib import Path
from perdure.execution.snapshots import transfer
from perdure.execution.snapshots.stores.folder import FolderStore
from perdure.testing.stores import Counting, Node

class Deadly(Counting):
    def read(self, *what):
        data = super().read(*what)
        if len(self.ranges) >= int(sys.argv[5]):
            os.kill(os.getpid(), signal.SIGKILL)
        return data

root, remote, how, reference = Path(sys.argv[1]), Deadly(FolderStore(Path(sys.argv[2]))), sys.argv[3], sys.argv[4]
node = Node(root)
node.connect = lambda url: remote
node.cache._connect = node.connect
getattr(transfer, how)(node.store, node.templates, node.images, remote, reference)
"""


@pytest.mark.parametrize("how", ["pull", "attach"])
@pytest.mark.parametrize("reads", [1, 2, 4, 6, 8, 9, 10, 11])
def test_killed_at_any_read_it_goes_on(place: Place, tmp_path: Path, how: str, reads: int) -> None:
    place.push()
    reference = transfer.tag_of(place.snapshot.digest)
    argv = [sys.executable, "-c", KILLED, place.there.root, tmp_path / "remote", how, reference, str(reads)]
    killed = subprocess.run(argv, check=False, capture_output=True)
    assert (killed.returncode, killed.stderr) == (-signal.SIGKILL, b"")
    place.there.store = Store(place.there.store.folder, place.there.cache)  # as the next node opens it
    assert place.there.left_over() == []
    came = place.pull() if how == "pull" else place.attach()
    assert restored(place.there, came) == (place.content, DISK)
    assert [path for path in place.there.templates.iterdir() if path.name.endswith(".new")] == []
    place.there.images.sweep()
    assert not list((place.there.root / "images").glob("new-*"))


def test_a_full_disk_leaves_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.push()
    real = Store.writer

    def writer(store: Store, what: str) -> object:
        made = real(store, what)
        made._file.close()
        made._file = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115 - stands for the disk
        return made

    monkeypatch.setattr(Store, "writer", writer)
    with pytest.raises(NoSpace):
        place.pull()
    monkeypatch.undo()
    assert place.there.left_over() == []
    assert place.there.store.snapshots() == []
    assert restored(place.there, place.pull()) == (place.content, DISK)


def test_two_pushes_and_two_pulls_at_once(place: Place) -> None:
    def both(action: Callable[[], Any]) -> list[Any]:
        with ThreadPoolExecutor(2) as pool:
            return [each.result() for each in [pool.submit(action) for _ in range(2)]]

    both(place.push)
    assert both(place.pull) == [place.snapshot] * 2
    assert restored(place.there, place.snapshot) == (place.content, DISK)
    assert place.there.left_over() == []


def test_what_cannot_be(place: Place, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no tag nothing"):
        place.pull(reference="nothing")
    with pytest.raises(InvalidValue, match="is not a tag"):
        place.pull(reference="../etc/passwd")
    with pytest.raises(InvalidValue, match="is not a tag"):
        place.push(tag="a b")
    itself = FolderStore(place.here.store.folder)
    with pytest.raises(InvalidValue, match="own store"):
        transfer.evict(place.here.store, place.snapshot, itself)
    place.push()
    bare = Store(tmp_path / "bare")
    with pytest.raises(Conflict, match="without a cache"):
        transfer.attach(bare, place.there.templates, place.there.images, place.remote, place.snapshot.digest)
    shutil.rmtree(place.here.templates / "warm")
    with pytest.raises(NotFound, match="template"):
        place.push()
