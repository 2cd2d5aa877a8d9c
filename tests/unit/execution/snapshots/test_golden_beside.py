"""Golden files of what lies beside a store: captures, cached frames, disk indexes, stores beyond this machine.

capture-1: the collector's own, of the same memory: a difference, all of it, a difference without a template. cache-1: a
layer with frames 0 and 5, and the layer itself. disk-index-1: of a disk with three chunks of data. remote-1: a folder
that a node pushed a snapshot into, with template, image and working set. As those of ``test_golden`` they are never
edited.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from pathlib import Path

import pytest

from perdure.errors import NotFound, PerdureError, SnapshotInvalid
from perdure.execution.snapshots import capture, diskchanges, restore, spaces, templates, transfer
from perdure.execution.snapshots.cache import FrameCache
from perdure.execution.snapshots.care import verify
from perdure.execution.snapshots.collected import opened
from perdure.execution.snapshots.stores.folder import FolderStore
from perdure.execution.snapshots.templates import Template
from perdure.formats import capturefile
from perdure.formats.blockmap import BASE, BLOCK, LAYER, NO_BASE, ZERO, Run
from perdure.formats.diskindex import CHUNK, HASH_BYTES, DiskIndex, Stamp
from perdure.formats.manifest import MANIFEST, MEMORY_LAYER, Descriptor, Snapshot, digest_of
from perdure.testing.snapshots import BLOCKS, Bench, facts, sparse_file
from perdure.testing.stores import Counting, Node

GOLDEN = Path(__file__).parents[3] / "golden"


def block(number: int) -> bytes:
    return (f"block {number} ".encode() * 600)[:BLOCK]


def newer(data: bytes, checksum_at: int) -> bytes:
    """The same of version 2, with the right checksum."""
    head = data[:4] + b"\x02" + data[5:checksum_at]
    checksum = zlib.crc32(head + bytes(4) + data[checksum_at + 4 :])
    return head + checksum.to_bytes(4, "little") + data[checksum_at + 4 :]


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


# Captures

DIFFERENCE = [Run(2, 2, BASE, 2), Run(4, 1, LAYER, 0), Run(9, 1, ZERO), Run(10, 1, BASE, 10), Run(20, 1, LAYER, 1)]
FULL = [
    Run(0, 2, ZERO), Run(2, 2, BASE, 2), Run(4, 1, LAYER, 0), Run(5, 5, ZERO), Run(10, 1, BASE, 10), Run(11, 9, ZERO),
    Run(20, 1, LAYER, 1), Run(21, 235, ZERO),
]  # fmt: skip
BARE = [Run(2, 3, LAYER, 0), Run(9, 1, ZERO), Run(10, 1, LAYER, 3), Run(20, 1, LAYER, 4)]
CAPTURED = {2: block(2), 3: block(3), 4: block(104), 9: bytes(BLOCK), 10: block(10), 20: block(120)}


@pytest.mark.parametrize(("name", "runs"), [("difference", DIFFERENCE), ("full", FULL), ("bare", BARE)])
def test_a_capture_of_version_1(name: str, runs: list[Run]) -> None:
    found = opened(GOLDEN / "capture-1" / name, BLOCKS)
    assert (found.blocks, found.runs) == (BLOCKS, runs)
    assert found.base == (NO_BASE if name == "bare" else bytes(range(32)))
    held = {run.first: bytes(found.content(run)) for run in runs if run.source == LAYER}
    assert b"".join(held.values()) == b"".join(
        data for number, data in CAPTURED.items() if name == "bare" or number in (4, 20) if data != bytes(BLOCK)
    )


def test_a_capture_of_version_1_becomes_a_snapshot(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    memory = {number: block(500 + number) for number in range(BLOCKS)}
    template = bench.template(b"".join(memory.values()))
    bench.capture(template, {}, block(1))
    made = packed(bench, template, (GOLDEN / "capture-1" / "bare").read_bytes())
    with spaces.memory_of(bench.store, made, template) as space:
        assert space.read(0, BLOCKS) == b"".join((memory | CAPTURED).values())


def packed(bench: Bench, parent: Snapshot | Template, captured: bytes) -> Snapshot:
    (bench.root / "captured" / "memory").write_bytes(captured)
    return capture.pack(
        bench.store,
        folder=bench.root / "captured",
        overlay=bench.root / "overlay",
        parent=parent,
        templates=bench.templates,
        sandbox_id="0123456789ab",
        image_digest="",
    )


def test_a_capture_that_is_damaged_or_newer_never_becomes_a_snapshot(tmp_path: Path) -> None:
    whole = (GOLDEN / "capture-1" / "difference").read_bytes()
    used = capturefile.HEADER.size + 12 * len(DIFFERENCE)
    for place in (*range(used), used, BLOCK - 1, BLOCK, len(whole) - 1):
        with pytest.raises(SnapshotInvalid):
            capturefile.decode(flipped(whole, place))
    bench = Bench(tmp_path)
    template = bench.template(b"".join(map(block, range(BLOCKS))))
    made = bench.capture(template, {}, block(1))
    before = {path.name for path in (tmp_path / "store/blobs/sha256").iterdir()}
    for data, words in (
        (whole[:4] + b"\x02" + whole[5:], "format version 2, not 1"),
        (flipped(whole, BLOCK), "checksum of the capture file's data"),
        (whole[:-1], "where its header asks for"),
        (whole, "captured over template 000102"),
    ):
        with pytest.raises(SnapshotInvalid, match=words):
            packed(bench, made, data)
    assert bench.left_over() == []
    assert {path.name for path in (tmp_path / "store/blobs/sha256").iterdir()} == before


# The cache of frames

LAYER_HEX = "fefa6cf4504fdd603003ce1441e9e1ce7eb09b9c929899a8a9477dee811b9855"
CACHED = Descriptor(media_type=MEMORY_LAYER, digest=f"sha256:{LAYER_HEX}", size=1225)
FRAME = 16  # blocks
RECORD_HEADER = 36


class Cached:
    """A copy of the golden cache, and the store that it was filled from."""

    def __init__(self, root: Path) -> None:
        self.folder, self.root = root / "frames", root
        shutil.copytree(GOLDEN / "cache-1", self.folder, ignore=shutil.ignore_patterns("layer"))
        remote = FolderStore(root / "remote")
        remote.put(CACHED, GOLDEN / "cache-1" / "layer")
        self.remote = Counting(remote)
        self.record = self.folder / f"{LAYER_HEX}.present"

    def present(self) -> list[int]:
        """What counts as there; then every frame is read, and is what it was."""
        with (
            FrameCache(self.folder, connect=lambda url: self.remote) as cache,
            cache.open(CACHED, self.remote.url) as layer,
        ):
            assert layer.map.runs == [Run(0, 8 * FRAME, LAYER, 0)]
            there = [number for number in range(8) if layer.present(number)]
            for number in there:
                assert layer.frame(number) == b"".join(map(block, range(number * FRAME, (number + 1) * FRAME)))
            self.reads = len(self.remote.ranges)
            content = b"".join(layer.frame(number) for number in range(8))
        assert content == b"".join(map(block, range(8 * FRAME)))
        assert (self.folder / LAYER_HEX).read_bytes() == (GOLDEN / "cache-1" / "layer").read_bytes()
        return there


def test_a_cache_of_version_1(tmp_path: Path) -> None:
    cached = Cached(tmp_path)
    assert cached.present() == [0, 5]
    assert cached.reads == 0  # neither the index nor these frames came again
    assert cached.present() == list(range(8))


@pytest.mark.parametrize("place", [*range(RECORD_HEADER), RECORD_HEADER])
def test_of_a_damaged_record_no_frame_counts(tmp_path: Path, place: int) -> None:
    cached = Cached(tmp_path)
    cached.record.write_bytes(flipped(cached.record.read_bytes(), place))
    assert cached.present() == []
    assert cached.reads == 1  # its index


def test_of_a_newer_record_no_frame_counts(tmp_path: Path) -> None:
    cached = Cached(tmp_path)
    cached.record.write_bytes(newer(cached.record.read_bytes(), 32))
    assert cached.present() == []


@pytest.mark.parametrize("part", ["frame", "index"])
def test_damaged_bytes_of_the_cache_come_again(tmp_path: Path, part: str) -> None:
    cached = Cached(tmp_path)
    path = cached.folder / LAYER_HEX
    path.write_bytes(flipped(path.read_bytes(), 5 if part == "frame" else path.stat().st_size - 20))
    assert cached.present() == ([0, 5] if part == "frame" else [])
    assert cached.reads == 1


# Disk indexes

SNAPSHOT = "sha256:" + "5" * 64
DISK_SIZE = 5 * CHUNK + 2 * BLOCK
DISK = (0, 53, 54, 81)  # its blocks that are not holes
STAMP = Stamp(bytes(range(16)), DISK_SIZE, 1234567, 1_700_000_000_123_456_789)
INDEX = GOLDEN / "disk-index-1" / "disk-index"


def test_a_disk_index_of_version_1(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    sparse_file(path, {number: block(number) for number in DISK}, DISK_SIZE // BLOCK)
    content = path.read_bytes()
    hashes = {
        number: hashlib.sha256(content[number * CHUNK : (number + 1) * CHUNK]).digest()[:HASH_BYTES]
        for number in (0, 3, 5)
    }
    index = diskchanges.load(INDEX, SNAPSHOT)
    assert index == DiskIndex(SNAPSHOT, STAMP, hashes)
    assert diskchanges.changes(path, index).ranges == []  # of another file with the same content
    with path.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"x", 53 * BLOCK)
        os.pwrite(file.fileno(), b"x", 81 * BLOCK)
    assert diskchanges.changes(path, index).ranges == [(48, 64), (80, 82)]
    assert diskchanges.load(INDEX, "sha256:" + "6" * 64) is None


def test_a_damaged_or_newer_disk_index_is_none(tmp_path: Path) -> None:
    whole = INDEX.read_bytes()
    copy = tmp_path / "disk-index"
    for data in (
        *(flipped(whole, place) for place in range(len(whole))),
        *(whole[:length] for length in range(len(whole))),
        newer(whole, 84),
    ):
        copy.write_bytes(data)
        assert diskchanges.load(copy, SNAPSHOT) is None


# Stores beyond this machine

PUSHED = "sha256:10a0484f222e036edc59982d81b16587fb6e5ab88a1c11f12025289738e59a28"
IMAGE = "sha256:388b6473eec49757687cec4f2e206c2d50074846da23638a493050f2d633656e"
TEMPLATE = "607b0f722b10abb2fee3cc3ab235c8f899a77036fa7336257cdacc7106230561"
FIRST = {number: block(number) if number % 3 else bytes(BLOCK) for number in range(BLOCKS)}
MEMORY = FIRST | {number: block(number + 1000) for number in range(10, 60)}
MEMORY |= {number: bytes(BLOCK) if number % 2 else block(number + 2000) for number in range(30, 90)}
PUSHED_DISK = block(77) + b"".join(block(number + 5) for number in range(1, 10)) + bytes(10 * BLOCK)
ARTIFACTS = {
    "snapshot": "golden",
    "template": f"template-warm-{TEMPLATE[:16]}",
    "image": f"image-{IMAGE.removeprefix('sha256:')[:32]}",
    "working set": f"working-set-{PUSHED.removeprefix('sha256:')[:32]}",
}


def remote_in(folder: Path) -> FolderStore:
    shutil.copytree(GOLDEN / "remote-1", folder)
    return FolderStore(folder)


def brought(node: Node, remote: FolderStore, how: str, reference: str = "golden") -> Snapshot:
    snapshot: Snapshot = getattr(transfer, how)(node.store, node.templates, node.images, remote, reference)
    return snapshot


def check(node: Node, snapshot: Snapshot) -> None:
    config = snapshot.config
    assert (snapshot.digest, config.template_digest, config.image_digest) == (PUSHED, TEMPLATE, IMAGE)
    assert (config.sandbox_id, config.facts, len(snapshot.memory.layers)) == ("0123456789ab", facts(), 2)
    template = templates.load(node.templates, config.template, TEMPLATE)
    assert template.memory.read_bytes() == b"".join(FIRST.values())
    assert template.state.read_bytes() == b"state of the template"
    with spaces.memory_of(node.store, snapshot, template) as space:
        assert space.read(0, BLOCKS) == b"".join(MEMORY.values())
    folder = node.root / "restored"
    folder.mkdir()
    files = restore.prepare(node.store, snapshot, folder=folder, templates=node.templates, facts=facts())
    assert files.overlay.read_bytes() == PUSHED_DISK
    assert files.state.read_bytes() == b"device state"
    assert node.images.get(IMAGE).squashfs.read_bytes() == b"a disk, packed"


@pytest.mark.parametrize("reference", ["golden", PUSHED])
@pytest.mark.parametrize("how", ["pull", "attach"])
def test_a_store_of_version_1(tmp_path: Path, how: str, reference: str) -> None:
    remote = remote_in(tmp_path / "remote")
    assert remote.tags() == sorted(ARTIFACTS.values())
    with Node(tmp_path / "node") as node:
        snapshot = brought(node, remote, how, reference)
        assert node.store.working_set(PUSHED) == [88, 12, 40, 255, 0, 31]
        held = [node.store.blob_path(layer.digest).exists() for layer in snapshot.memory.layers]
        assert held == [how == "pull"] * 2
        check(node, snapshot)
        assert verify.whole(node.store, templates=node.templates).findings == []


def test_what_is_pushed_into_a_store_of_version_1_finds_its_parts_there(tmp_path: Path) -> None:
    remote = remote_in(tmp_path / "remote")
    with Node(tmp_path / "node") as node:
        snapshot = brought(node, remote, "pull")
        sent = transfer.push(node.store, node.templates, node.images, snapshot, remote, "again")
        assert sent.held_bytes > 0
        assert remote.tags() == sorted([*ARTIFACTS.values(), "again"])
        assert sent.sent_bytes < sent.held_bytes  # the template, as another zstd may pack it
    with Node(tmp_path / "other") as node:
        check(node, brought(node, remote, "pull", "again"))


def blobs_of(remote: FolderStore, tag: str) -> list[str]:
    document = json.loads(remote.manifest(tag))
    return [digest_of(remote.manifest(tag)), *(one["digest"] for one in (document["config"], *document["layers"]))]


def paths_of(remote: FolderStore, what: str) -> list[Path]:
    return [remote.folder / "blobs" / digest.replace(":", "/") for digest in blobs_of(remote, ARTIFACTS[what])]


@pytest.mark.parametrize("what", ["snapshot", "template", "image"])
def test_a_damaged_blob_is_refused_and_leaves_nothing(tmp_path: Path, what: str) -> None:
    remote, nodes = remote_in(tmp_path / "remote"), iter(range(1000))

    def refused(error: type[PerdureError]) -> None:
        """By a node that has nothing yet: what came whole is not asked for again."""
        with Node(tmp_path / str(next(nodes))) as node:
            with pytest.raises(error):
                brought(node, remote, "pull", PUSHED)
            assert node.store.digests() == node.left_over() == []
            assert not list(node.templates.glob("*.new"))

    for path in paths_of(remote, what):
        whole = path.read_bytes()
        for data in (flipped(whole, len(whole) // 2), whole[:-1]):
            path.write_bytes(data)
            refused(SnapshotInvalid)
        path.unlink()
        refused(NotFound)
        path.write_bytes(whole)


def test_a_damaged_working_set_is_none(tmp_path: Path) -> None:
    remote = remote_in(tmp_path / "remote")
    for path in paths_of(remote, "working set"):
        path.write_bytes(flipped(path.read_bytes(), 0))
    with Node(tmp_path / "node") as node:
        check(node, brought(node, remote, "pull", PUSHED))
        assert node.store.working_set(PUSHED) == []


@pytest.mark.parametrize("what", ["snapshot", "template", "image"])
def test_an_artifact_of_a_newer_version_is_refused(tmp_path: Path, what: str) -> None:
    remote = remote_in(tmp_path / "remote")
    data = remote.manifest(ARTIFACTS[what]).replace(f"perdure.{what}.v1".encode(), f"perdure.{what}.v2".encode())
    (tmp_path / "manifest").write_bytes(data)
    remote.tag(ARTIFACTS[what], data, Descriptor(media_type=MANIFEST, digest=digest_of(data), size=len(data)))
    with Node(tmp_path / "node") as node:
        with pytest.raises(SnapshotInvalid, match=r"\.v2"):
            brought(node, remote, "pull")
        assert node.store.digests() == node.left_over() == []
