"""Verification: silent about what is sound, and with something damaged it says what, where, and all of it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec
import pytest

from perdure.errors import MachineFailed, NotFound
from perdure.execution.snapshots import layers, templates
from perdure.execution.snapshots.care import content, verify
from perdure.execution.snapshots.care.verify import Restored
from perdure.formats import blockmap, manifest
from perdure.formats.blockmap import BLOCK, LAYER, MEMORY, NO_BASE, ROLE_FLAT, Run
from perdure.formats.manifest import Snapshot
from perdure.reports import Finding, Verification
from perdure.testing.snapshots import BLOCKS, Bench, block, blocks_of

DISK = blocks_of(range(40))


@pytest.fixture
def chain(bench: Bench) -> list[Snapshot]:
    """Three snapshots, each with a layer of memory (of 13 frames in the first) and one of the disk."""
    template = bench.template(blocks_of(number % 5 for number in range(BLOCKS)))
    first = bench.capture(template, {number: block(number + 10) for number in range(200)}, DISK, working_set=(3, 1))
    second = bench.capture(first, {7: block(1), 9: block(0)}, DISK[BLOCK:] + block(7))
    return [first, second, bench.capture(second, {8: block(2)}, DISK)]


def seen(bench: Bench, snapshot: Snapshot) -> list[Finding]:
    return verify.snapshot(bench.store, snapshot.digest, templates=bench.templates).findings


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_what_is_sound_is_counted(bench: Bench, chain: list[Snapshot]) -> None:
    steps: list[tuple[str, int, int]] = []
    found = verify.whole(bench.store, templates=bench.templates, progress=lambda *step: steps.append(step))
    blobs = {blob.digest: blob.size for snapshot in chain for blob in snapshot.descriptors}
    configs = [manifest.config_of(bench.store.blob_path(snapshot.digest).read_bytes()) for snapshot in chain]
    sizes = blobs | {config.digest: config.size for config in configs}
    assert found == Verification(
        snapshots=3,
        blobs=len(sizes),
        blob_bytes=sum(sizes.values()),
        frames=13 + 1 + 1 + 3 + 3 + 3,
        content_bytes=(200 + 1 + 1 + 39 + 40 + 39) * BLOCK,
    )
    assert steps[-1] == ("Verifying", 1, 1)
    assert [done for _, done, total in steps if total > 1] == sorted(done for _, done, total in steps if total > 1)


def test_every_damaged_frame_is_named(bench: Bench, chain: list[Snapshot]) -> None:
    path = bench.store.blob_path(chain[0].memory.layers[0].digest)
    with layers.Layer(path) as layer:
        for number in (2, 11):
            flip(path, layer.frames[number].offset + 50)
    found = verify.whole(bench.store, templates=bench.templates).findings
    assert {one.frame for one in found if one.layer == path.name and one.frame is not None} == {2, 11}
    assert all(one.hint for one in found if one.layer)
    for snapshot in chain:  # all of them lie over it
        assert [one.problem for one in found if one.object == f"snapshot {snapshot.digest}"] == [
            f"1 of its {len(snapshot.descriptors) + 1} blobs are not sound: it cannot be restored"
        ]
    assert "does not have its digest" in found[0].problem


def test_what_is_removed_meanwhile_is_no_finding(bench: Bench, chain: list[Snapshot]) -> None:
    def remove(*_: object) -> None:  # told while the first one is read
        bench.store.remove(snapshot.digest for snapshot in chain)

    found = verify.whole(bench.store, templates=bench.templates, progress=remove)
    assert (found.findings, found.snapshots) == ([], 1)  # the one that was being read stayed until it was through
    # As one that is removed between the look at the folder and the look at itself:
    (bench.store.folder / "blobs" / "sha256" / ("5" * 64)).symlink_to("nowhere")
    assert verify.whole(bench.store, templates=bench.templates).findings == []


@pytest.mark.parametrize("which", ["layer", "map", "state", "config"])
@pytest.mark.parametrize("damage", ["gone", "truncated", "longer", "flipped"])
def test_any_blob(bench: Bench, chain: list[Snapshot], which: str, damage: str) -> None:
    last = chain[-1]
    digest = {
        "layer": last.disk.layers[-1].digest,
        "map": last.memory.map.digest,
        "state": last.state.digest,
        "config": manifest.config_of(bench.store.blob_path(last.digest).read_bytes()).digest,
    }[which]
    path = bench.store.blob_path(digest)
    data = path.read_bytes()
    words = {
        "gone": "is missing",
        "truncated": "is truncated",
        "longer": "is longer than it was",
        "flipped": "damaged or changed",
    }[damage]
    if damage == "gone":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(data[:-1])
    elif damage == "longer":
        path.write_bytes(data + b"x")
    else:
        flip(path, len(data) // 2)
    found = seen(bench, last)
    assert words in found[0].problem
    assert path.name in found[0].problem
    assert found[-1].object == f"snapshot {last.digest}"
    if which != "state":  # which all share here
        assert seen(bench, chain[0]) == []


def test_a_manifest_that_is_damaged_or_gone(bench: Bench, chain: list[Snapshot]) -> None:
    flip(bench.store.blob_path(chain[0].digest), 5)
    bench.store.blob_path(chain[1].digest).unlink()
    found = verify.whole(bench.store, templates=bench.templates)
    assert found.snapshots == 3
    assert [one.object for one in found.findings] == [f"snapshot {chain[0].digest}", f"snapshot {chain[1].digest}"]
    assert "damaged or changed" in found.findings[0].problem
    assert "is missing" in found.findings[1].problem
    assert all("rm --force" in one.hint for one in found.findings)


def test_templates(bench: Bench, chain: list[Snapshot]) -> None:
    memory = bench.templates / "warm" / "memory"
    kept = memory.read_bytes()
    with memory.open("r+b") as file:
        file.seek(BLOCK + 9)
        file.write(b"!")
    (one,) = seen(bench, chain[2])
    assert (one.object, "damaged or changed" in one.problem) == ("template warm", True)
    shutil.rmtree(bench.templates / "warm")
    (one,) = seen(bench, chain[2])
    assert (one.object, "is not in" in one.problem) == ("template warm", True)
    bench.template(kept[BLOCK:] + block(9))
    assert "wrong base" in seen(bench, chain[2])[0].problem


def test_facts_of_another_machine(bench: Bench, chain: list[Snapshot]) -> None:
    here = {"cpu_vendor": "GenuineIntel", "firecracker": "1.12.1", "cpu_family": 6}
    found = verify.snapshot(bench.store, chain[0].digest, templates=bench.templates, facts=here).findings
    assert [one.problem for one in found] == [
        "cpu_vendor was AuthenticAMD, is GenuineIntel here",
        "cpu_family was 25, is 6 here",
    ]


def test_a_layer_over_another_base(bench: Bench, chain: list[Snapshot]) -> None:
    """All digests are right: somebody put a snapshot together from parts that do not belong together."""
    last = chain[2]
    swapped = [last.memory.layers[1], last.memory.layers[0], last.memory.layers[2]]
    made = bench.store.register(
        msgspec.structs.replace(last, memory=msgspec.structs.replace(last.memory, layers=swapped))
    )
    found = seen(bench, made)
    assert len([one for one in found if "wrong base" in one.problem]) == 3
    crossed = bench.store.register(
        msgspec.structs.replace(last, disk=msgspec.structs.replace(last.disk, layers=last.disk.layers[:2]))
    )
    (one,) = seen(bench, crossed)
    assert (one.object, one.problem) == (f"disk map of snapshot {crossed.digest}", "it is the map of something else")


def test_a_map_that_contradicts_its_layers(bench: Bench, chain: list[Snapshot]) -> None:
    last = chain[2]
    held = blockmap.decode(bench.store.read(last.memory.map))
    runs = [run._replace(source=LAYER) if run.first == 8 else run for run in held.runs]
    assert runs != held.runs
    data = blockmap.encode(runs, kind=MEMORY, role=ROLE_FLAT, blocks=BLOCKS, layers=3, base=held.base)
    other = bench.store.add(data, manifest.MEMORY_MAP)
    made = bench.store.register(msgspec.structs.replace(last, memory=msgspec.structs.replace(last.memory, map=other)))
    (one,) = seen(bench, made)
    assert one.object == f"memory map of snapshot {made.digest}"
    assert one.problem == "from block 8 on it does not say what the layers say"


def test_a_layer_of_the_other_space(bench: Bench, chain: list[Snapshot]) -> None:
    with bench.store.writing():
        strange = layers.write(
            bench.store, [Run(0, 1, LAYER)], [block(3)], kind=MEMORY, blocks=BLOCKS + 1, base=NO_BASE
        )
    assert strange is not None
    last = chain[2]
    made = bench.store.register(
        msgspec.structs.replace(
            last, memory=msgspec.structs.replace(last.memory, layers=[strange, *last.memory.layers[1:]])
        )
    )
    found = seen(bench, made)
    assert f"it is for memory of {BLOCKS + 1} blocks, not memory of {BLOCKS}" in [one.problem for one in found]
    assert all(one.layer for one in found if "is for memory" in one.problem)


def test_a_damaged_working_set(bench: Bench, chain: list[Snapshot]) -> None:
    flip(bench.store.folder / "working-sets" / chain[0].digest.removeprefix("sha256:"), 6)
    (one,) = seen(bench, chain[0])
    assert "working set" in one.problem


def test_what_nobody_needs_is_counted_and_no_finding(bench: Bench, chain: list[Snapshot]) -> None:
    bench.store.add(b"left by a crash", "x/y")
    found = verify.whole(bench.store, templates=bench.templates)
    assert (found.findings, found.orphans, found.orphan_bytes) == ([], 1, 15)


def test_a_tagged_artifact_of_another_kind(bench: Bench, chain: list[Snapshot]) -> None:
    blob = bench.store.add(b"the file system", "application/vnd.perdure.image.layer")
    config = bench.store.add(b"{}", "application/json")
    described = msgspec.json.encode(
        {
            "schemaVersion": 2,
            "mediaType": manifest.MANIFEST,
            "artifactType": "application/vnd.perdure.image.v1",
            "config": config,
            "layers": [blob],
        }
    )
    bench.store.tag("image-1", bench.store.add(described, manifest.MANIFEST))
    found = verify.whole(bench.store, templates=bench.templates)
    assert (found.findings, found.orphans, found.snapshots) == ([], 0, 3)
    flip(bench.store.blob_path(blob.digest), 3)
    found = verify.whole(bench.store, templates=bench.templates)
    assert [one.object.split()[0] for one in found.findings] == ["blob", "artifact"]


def test_layers_that_are_kept_elsewhere_are_named(bench: Bench, chain: list[Snapshot]) -> None:
    gone = chain[0].memory.layers[0]
    bench.store.drop([gone], "s3://bucket/there")
    found = verify.whole(bench.store, templates=bench.templates)
    assert (found.findings, found.remote) == ([], [gone.digest])
    note = bench.store.folder / "remotes" / gone.digest.removeprefix("sha256:")
    note.write_text("{}")  # nobody knows where any more
    found = verify.whole(bench.store, templates=bench.templates)
    assert found.remote == []
    first, *others = found.findings
    assert (first.layer, f"{note} does not read" in first.problem) == (note.name, True)
    assert "again" in first.hint
    assert [one.object for one in others] == [f"snapshot {one.digest}" for one in chain]


def test_the_layout_file(bench: Bench, chain: list[Snapshot]) -> None:
    (bench.store.folder / "oci-layout").write_text('{"imageLayoutVersion":"2.0.0"}')
    (one,) = verify.whole(bench.store, templates=bench.templates).findings
    assert "version 2.0.0" in one.problem


class Machine:
    """What restores for real, for the tests: it reads what the layers hold, and may get it wrong."""

    def __init__(self, bench: Bench, problem: str = "") -> None:
        self.bench, self.problem, self.asked = bench, problem, 0

    def __call__(self, snapshot: Snapshot) -> Restored:
        from perdure.execution.snapshots import spaces

        self.asked += 1
        if self.problem == "dies":
            raise MachineFailed("it died", hint="Look after it.")
        raw = self.bench.root / "restored"
        with spaces.memory_of(self.bench.store, snapshot, templates.load(self.bench.templates, "warm")) as space:
            raw.write_bytes(space.read(0, BLOCKS))
        if self.problem == "memory":
            flip(raw, 5 * BLOCK)
        own: frozenset[int] = frozenset()
        if self.problem in ("own", "too many"):
            own = frozenset(range(3 if self.problem == "own" else 9))
            for number in own:
                flip(raw, number * BLOCK + 7)
        digest = content.digest_of_file(raw, without=own)
        return Restored(digest, own, "block bitmap differs" if self.problem == "disk" else "")


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        ("", ""),
        ("memory", "its memory has digest"),
        ("disk", "not clean"),
        ("dies", "it died"),
        ("own", ""),
        ("too many", "9 blocks of its memory changed before any of its instructions ran"),
    ],
)
def test_a_real_restore(bench: Bench, chain: list[Snapshot], problem: str, words: str) -> None:
    machine = Machine(bench, problem)
    found = verify.snapshot(bench.store, chain[2].digest, templates=bench.templates, restore=machine)
    assert machine.asked == 1
    assert found.restored == (problem != "dies")
    assert [words in one.problem for one in found.findings] == ([True] if words else [])


def test_what_is_not_restored_as_it_is_elsewhere_is_named(bench: Bench, chain: list[Snapshot]) -> None:
    """With the reason, and with what brings it here: the pull of the snapshot that the layer was captured for."""
    own = bench.capture(templates.load(bench.templates, "warm"), {5: block(6)}, DISK)
    bench.store.drop(chain[0].memory.layers, "s3://bucket/there")
    bench.store.drop(chain[2].memory.layers[2:], "oci://host/here")
    machine = Machine(bench)
    found = verify.whole(bench.store, templates=bench.templates, restore=machine)
    assert (found.findings, found.snapshots, found.restored, machine.asked) == ([], 4, 1, 1)
    assert own.digest not in {one.snapshot for one in found.not_restored}
    there, here = (f"fcrun snapshot pull {url}@" for url in ("s3://bucket/there", "oci://host/here"))
    assert [(one.snapshot, one.reason, one.hint.partition(": ")[2]) for one in found.not_restored] == [
        (
            chain[0].digest,
            "its memory is kept elsewhere: s3://bucket/there",
            there + chain[0].digest,
        ),
        (
            chain[1].digest,
            "1 of its 2 memory layers is kept elsewhere: s3://bucket/there",
            there + chain[0].digest,
        ),
        (
            chain[2].digest,
            "2 of its 3 memory layers are kept elsewhere: s3://bucket/there, oci://host/here",
            f"{there}{chain[0].digest}; {here}{chain[2].digest}",
        ),
    ]
    assert verify.whole(bench.store, templates=bench.templates).not_restored == []  # nobody asked for it
    bench.store.remove([chain[0].digest, chain[1].digest])  # what it was made from is not known any more
    (left,) = verify.whole(bench.store, templates=bench.templates, restore=machine).not_restored
    assert f"{there}{chain[2].digest}; " in left.hint


def test_what_is_elsewhere_and_damaged_is_a_finding(bench: Bench, chain: list[Snapshot]) -> None:
    bench.store.drop(chain[0].memory.layers, "s3://bucket/there")
    flip(bench.store.blob_path(chain[2].state.digest), 9)
    found = verify.snapshot(bench.store, chain[2].digest, templates=bench.templates, restore=Machine(bench))
    assert (len(found.findings), found.restored, found.not_restored) == (2, 0, [])


def test_what_does_not_verify_is_never_restored(bench: Bench, chain: list[Snapshot]) -> None:
    os.truncate(bench.store.blob_path(chain[2].state.digest), 3)
    machine = Machine(bench)
    assert verify.snapshot(bench.store, chain[2].digest, templates=bench.templates, restore=machine).findings
    assert machine.asked == 0


def test_a_snapshot_that_is_not_there(bench: Bench) -> None:
    with pytest.raises(NotFound, match="is not in the store"):
        verify.snapshot(bench.store, "sha256:" + "0" * 64, templates=bench.templates)
