"""The store: what it holds survives writers that die, and goes only when nobody needs it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from perdure.errors import NotFound, SnapshotInvalid
from perdure.execution.snapshots import layers, restore
from perdure.execution.snapshots.store import Store
from perdure.formats.blockmap import BLOCK, LAYER, MEMORY, NO_BASE, Run
from perdure.formats.manifest import MANIFEST
from perdure.reports import Swept
from perdure.testing.snapshots import BLOCKS, Bench, block, facts

DISK = b"d" * (16 * BLOCK)
DEADLINE_S = 20


def test_it_is_an_oci_image_layout(bench: Bench) -> None:
    made = bench.capture(bench.template(b"a" * (BLOCKS * BLOCK)), {1: b"b" * BLOCK}, DISK)
    folder = bench.store.folder
    assert json.loads((folder / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    (listed,) = json.loads((folder / "index.json").read_bytes())["manifests"]
    assert listed == {"mediaType": MANIFEST, "digest": made.digest, "size": listed["size"]}
    manifest = json.loads((folder / "blobs" / made.digest.replace(":", "/")).read_bytes())
    for blob in (manifest["config"], *manifest["layers"]):
        assert (folder / "blobs" / blob["digest"].replace(":", "/")).stat().st_size == blob["size"]


def test_removing_keeps_what_others_need(bench: Bench) -> None:
    template = bench.template(b"a" * (BLOCKS * BLOCK))
    first = bench.capture(template, {1: b"b" * BLOCK}, DISK, working_set=(1, 2))
    second = bench.capture(first, {2: b"c" * BLOCK}, DISK + b"")
    assert bench.store.remove([first.digest]) > 0
    assert bench.store.working_set(first.digest) == []
    with pytest.raises(NotFound):
        bench.store.get(first.digest)
    restore.prepare(bench.store, second, folder=bench.root, templates=bench.templates, facts=facts())
    bench.store.remove([second.digest])
    assert list((bench.store.folder / "blobs/sha256").iterdir()) == []
    assert bench.store.snapshots() == []


def test_what_somebody_comes_to_name_while_a_removal_waits_for_him_stays(bench: Bench) -> None:
    template = bench.template(b"a" * (BLOCKS * BLOCK))
    wanted = bench.capture(template, {1: b"b" * BLOCK}, DISK)
    unwanted = bench.capture(template, {2: b"c" * BLOCK}, DISK)
    named: set[str] = set()
    writes, waits = threading.Event(), threading.Event()

    def write() -> None:
        with Store(bench.store.folder).moment():
            writes.set()
            assert waits.wait(DEADLINE_S)
            named.add(wanted.digest)

    writer = threading.Thread(target=write)
    writer.start()
    assert writes.wait(DEADLINE_S)
    bench.store.before_deleting = waits.set  # from here on the removal does nothing but wait
    assert bench.store.remove([wanted.digest, unwanted.digest], unless=named.__contains__) > 0
    writer.join()
    assert bench.store.digests() == [wanted.digest]
    restore.prepare(bench.store, wanted, folder=bench.root, templates=bench.templates, facts=facts())


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_a_damaged_manifest_stops_nobody_elses_removal(bench: Bench, damage: str) -> None:
    template = bench.template(b"a" * (BLOCKS * BLOCK))
    first = bench.capture(template, {1: b"b" * BLOCK}, DISK)
    second = bench.capture(first, {2: b"c" * BLOCK}, DISK)
    path = bench.store.blob_path(first.digest)
    held = bench.store.blob_path(first.memory.layers[0].digest)
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    assert bench.store.remove([]) == 0
    assert bench.store.owners() == {second.digest: second.config.sandbox_id}
    assert bench.store.remove([second.digest]) == 0
    assert held.exists()  # what the damaged one needs is not known
    with pytest.raises(NotFound):
        bench.store.get("sha256:" + "0" * 64)
    assert bench.store.remove([first.digest]) > 0
    assert list((bench.store.folder / "blobs/sha256").iterdir()) == []


def test_captures_of_many_sandboxes_at_once_are_all_listed(bench: Bench) -> None:
    from perdure.execution.snapshots import capture

    template = bench.template(b"a" * (BLOCKS * BLOCK))
    base = bench.capture(template, {1: b"b" * BLOCK}, DISK)

    def one(number: int) -> None:
        capture.pack(
            Store(bench.store.folder),
            folder=bench.root / "captured",
            overlay=bench.root / "overlay",
            parent=base,
            templates=bench.templates,
            sandbox_id=f"sandbox-{number}",
            image_digest="",
        )

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {held.config.sandbox_id for held in bench.store.snapshots()} == {
        base.config.sandbox_id,
        *(f"sandbox-{number}" for number in range(8)),
    }
    assert [held.config.sandbox_id for held in bench.store.snapshots("sandbox-3")] == ["sandbox-3"]
    assert bench.left_over() == []


WRITER = """
import sys
from pathlib import Path
from perdure.execution.snapshots.store import Store
store = Store(Path(sys.argv[1]))
with store.writer("a layer") as writer:
    writer.write(b"x" * (2 << 20))
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_writer_left_is_swept_and_a_living_ones_is_not(bench: Bench) -> None:
    argv = [sys.executable, "-c", WRITER, str(bench.store.folder)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        Store(bench.store.folder).sweep(lambda digest: True)
        assert len(bench.left_over()) == 1
        writer.kill()
        writer.wait()
        Store(bench.store.folder)
        assert bench.left_over() == []


def test_a_blob_that_is_missing_cut_or_changed_is_named(bench: Bench) -> None:
    made = bench.capture(bench.template(b"a" * (BLOCKS * BLOCK)), {1: b"b" * BLOCK}, DISK)
    path = bench.store.blob_path(made.memory.layers[0].digest)
    data = path.read_bytes()

    def refused(error: type[Exception], match: str) -> None:
        with pytest.raises(error, match=match):
            restore.prepare(bench.store, made, folder=bench.root, templates=bench.templates, facts=facts())
        assert not (bench.root / "memory.map").exists()

    path.write_bytes(data[:-1])
    refused(SnapshotInvalid, "is truncated")
    path.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
    refused(SnapshotInvalid, "damaged or changed")
    path.unlink()
    refused(NotFound, path.name)
    path.write_bytes(data)
    restore.prepare(bench.store, made, folder=bench.root, templates=bench.templates, facts=facts())


def test_a_damaged_manifest_is_refused(bench: Bench) -> None:
    made = bench.capture(bench.template(b"a" * (BLOCKS * BLOCK)), {1: b"b" * BLOCK}, DISK)
    path = bench.store.blob_path(made.digest)
    path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))
    with pytest.raises(SnapshotInvalid, match="damaged or changed"):
        bench.store.get(made.digest)
    with pytest.raises(SnapshotInvalid, match="not a sha256 digest"):
        bench.store.get("../../etc/passwd")


def test_a_damaged_working_set_only_costs_time(bench: Bench) -> None:
    digest = "sha256:" + "a" * 64
    bench.store.keep_working_set(digest, [3, 1, 2])
    assert bench.store.working_set(digest) == [3, 1, 2]
    path = bench.store.folder / "working-sets" / ("a" * 64)
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    assert bench.store.working_set(digest) == []


def test_sweeps_go_on_while_a_layer_is_written_and_leave_it(bench: Bench) -> None:
    other, swept = Store(bench.store.folder), []

    def data() -> Iterator[bytes]:
        for seed in range(1, 5):
            swept.append(other.sweep(lambda digest: True))
            yield block(seed)

    with bench.store.writing():
        with bench.store.writing():
            made = layers.write(bench.store, [Run(0, 4, LAYER)], data(), kind=MEMORY, blocks=BLOCKS, base=NO_BASE)
        assert made is not None
        swept.append(other.sweep(lambda digest: True))
        bench.store.verified(made)
        assert swept == [Swept()] * 5
    assert other.sweep(lambda digest: True).blobs == 1
    assert bench.left_over() == []


def test_what_one_thread_claims_is_no_other_threads(bench: Bench) -> None:
    """A blob that somebody stored beside it, and does not keep, is nobody's."""
    with bench.store.writing():
        beside = threading.Thread(target=bench.store.add, args=(b"beside", "x/y"))
        beside.start()
        beside.join()
        bench.store.add(b"claimed", "x/y")
        assert bench.store.sweep(lambda digest: True).blob_bytes == len(b"beside")
