"""``fcrun snapshot`` against a real node with a real store; nothing here needs a machine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from msgspec.structs import replace

from perdure.client.node import NodeClient, ensure_running
from perdure.errors import Conflict, NotFound
from perdure.execution.sandboxes.record import Folder, KeptSnapshot
from perdure.formats import manifest
from perdure.formats.manifest import Snapshot
from perdure.host.paths import Home
from perdure.server.machines import NodeMachines
from perdure.testing.commands import Fcrun
from perdure.testing.sandboxes import sleeping
from perdure.testing.snapshots import BLOCKS, Bench, block, blocks_of

BOX, FORK = "b0b0b0b0b0b0", "f0f0f0f0f0f0"
DISK = blocks_of(range(30))


@dataclass
class Node:
    """A home with a running fcrund. ``box`` was suspended three times, ``fork`` is made from its second snapshot."""

    home: Home
    bench: Bench
    line: list[Snapshot]
    fork: Snapshot
    client: NodeClient
    fcrun: Fcrun


def short(snapshot: Snapshot) -> str:
    return snapshot.digest.removeprefix("sha256:")[:12]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    bench = Bench(tmp_path / "home")
    home = Home(tmp_path / "home", tmp_path / "cache").make()
    template = bench.template(blocks_of([1] * BLOCKS))
    line: list[Snapshot] = []
    for number in range(3):
        changed = {place: block(1000 * number + place) for place in range(number, 200)}
        line.append(bench.capture(line[-1] if line else template, changed, DISK, working_set=(90, 5), sandbox_id=BOX))
    fork = bench.capture(line[1], {3: block(7)}, DISK, sandbox_id=FORK)
    for sandbox_id, name, snapshots in ((BOX, "box", line), (FORK, "fork", [fork])):
        sleeping(
            home.sandboxes,
            sandbox_id,
            name,
            snapshots,
            template=template.name,
            template_digest=template.digest,
            snapshots=[KeptSnapshot(info=one.info(), stdout=5) for one in snapshots],
        )
    ensure_running(home)
    client = NodeClient(home)
    try:
        yield Node(home, bench, line, fork, client, Fcrun(home, ("snapshot",)))
    finally:
        client.shutdown()


def test_ls(node: Node) -> None:
    heading, *rows = node.fcrun.said("ls").splitlines()
    assert heading.split() == ["SNAPSHOT", "ID", "SANDBOX", "CREATED", "LAYERS", "SIZE", "TOTAL", "PARENT"]
    assert [row.split()[:2] for row in rows] == [
        [short(node.fork), "fork"],
        *([short(one), "box"] for one in reversed(node.line)),
    ]
    assert [row.split()[-1] for row in rows] == [short(node.line[1]), short(node.line[1]), short(node.line[0]), "warm"]
    assert "3+1" in rows[0]
    assert node.fcrun.said("ls", "-q", "--no-trunc", "box").split() == [one.digest for one in reversed(node.line)]
    (value,) = [json.loads(line) for line in node.fcrun.said("ls", "--format", "json", "fork").splitlines()]
    assert value["digest"] == node.fork.digest
    assert value["total_bytes"] > value["stored_bytes"] > 0
    assert node.fcrun.said("ls", "--format", "{{.ID}} {{.Layers}}", "fork") == f"{short(node.fork)} 3+1\n"


def test_a_snapshot_is_named_in_many_ways(node: Node) -> None:
    digest = node.line[2].digest
    for ref in (digest, digest[7:], digest[:20], digest[7:19], "box", BOX, BOX[:5]):
        assert node.client.store.inspect(ref)["digest"] == digest
    (found,) = json.loads(node.fcrun.said("inspect", "box"))
    assert (found["named_by"], found["working_set_blocks"]) == (["box"], 2)
    assert [layer["digest"] for layer in found["memory"]["layers"]] == [
        layer.digest for layer in node.line[2].memory.layers
    ]
    assert node.fcrun.said("inspect", "-f", "{{.config.template}}", "box") == "warm\n"


def test_errors_help(node: Node) -> None:
    for argv, words in (
        (["inspect", "nope"], "no such snapshot or sandbox: nope"),
        (["verify", "sha256:0123456789"], "no such snapshot or sandbox: sha256:0123456789"),
        (["ls", "nope"], "no such sandbox: nope"),
        (["compact", "nope"], "fcrun snapshot ls"),
        (["rm", "box"], "With --force it goes back"),
        (["rm", "fork"], "fcrun rm fork"),
        (["rm", "nope"], "no such snapshot or sandbox: nope"),
        (["explain"], "required: SNAPSHOT"),
        (["veryfy"], "Did you mean 'verify'?"),
    ):
        status, _, err = node.fcrun(*argv)
        assert status == 125, argv
        assert words in err, argv
        assert err.startswith("fcrun"), argv
    with pytest.raises(Conflict, match="ambiguous"):
        node.client.store.inspect(_common(node))


def test_a_thorough_verification_needs_all_that_a_restore_needs(node: Node) -> None:
    status, out, err = node.fcrun("verify", "--thorough", "box")
    assert (status, err) == (1, "")
    assert f"snapshot {node.line[2].digest}: no image" in out
    assert node.fcrun.said("verify", "box").startswith("box: sound")


def _common(node: Node) -> str:
    """A beginning that is a sandbox's and a snapshot's, or two snapshots'."""
    digests = [one.digest[7:] for one in (*node.line, node.fork)]
    number = 0
    while True:  # captures until two digests share their first digit: at most 17 are needed
        first = [digest[0] for digest in digests]
        if twice := [digit for digit in first if first.count(digit) > 1 or digit in (BOX[0], FORK[0])]:
            return twice[0]
        number += 1
        digests.append(node.bench.capture(node.fork, {1: block(9000 + number)}, DISK).digest[7:])


def test_tree(node: Node) -> None:
    lines = node.fcrun.said("tree").splitlines()
    assert lines[0] == "template warm"
    assert [line[:66].rstrip() for line in lines[1:]] == [
        f"└─ {short(node.line[0])}  box",
        f"   {short(node.line[1])}  box",
        f"   ├─ {short(node.fork)}  fork",
        f"   {short(node.line[2])}  box",
    ]
    assert all(len(line) <= 100 for line in lines)
    assert node.fcrun.said("tree", "-q").split() == [
        short(one) for one in (node.line[0], node.line[1], node.fork, node.line[2])
    ]
    assert [json.loads(line).get("depth", 0) for line in node.fcrun.said("tree", "--format", "json").splitlines()] == [
        0,
        1,
        1,
        2,
        1,
    ]


def test_verify(node: Node) -> None:
    assert node.fcrun.said("verify", "box").startswith("box: sound: 1 snapshot, ")
    assert node.fcrun.said("verify").startswith("the store: sound: 4 snapshots, ")
    assert node.fcrun.said("verify", "-q") == ""
    path = node.bench.store.blob_path(node.line[0].memory.layers[0].digest)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    status, out, err = node.fcrun("verify")
    assert (status, err) == (1, "")
    assert f"layer sha256:{path.name}, frame " in out
    assert "the store: 6 findings: 4 snapshots" in out
    status, out, _ = node.fcrun("verify", "--format", "json", "fork", "box")
    reports = [json.loads(line) for line in out.splitlines()]
    assert (status, len(reports)) == (1, 2)
    assert reports[0]["findings"][0]["layer"] == path.name


def test_explain(node: Node) -> None:
    out = node.fcrun.said("explain", "box")
    assert f"snapshot {node.line[2].digest}" in out
    assert "memory  1.05MB: " in out
    assert "working set  2 blocks" in out
    for layer in (*node.line[2].memory.layers, *node.line[2].disk.layers):
        assert layer.digest[7:19] in out
    assert all(len(line) <= 100 for line in out.splitlines())
    found = json.loads(node.fcrun.said("explain", "--format", "json", "box"))
    assert found["compaction_due"] is True  # nearly all of the older layers is dead
    assert "fcrun snapshot compact" in out


def test_compact_takes_the_place_of_the_old_one(node: Node) -> None:
    old = node.line[2]
    status, out, err = node.fcrun("compact", "box")
    assert (status, err) == (0, "")
    assert "3+1 layers, " in out
    new = node.client.store.inspect("box")
    assert new["digest"][7:19] == out.split()[0] != short(old)
    assert new["config"]["replaces"] == [old.digest]
    assert node.client.store.inspect(old.digest)["digest"] == new["digest"]  # its former name means it still
    info = node.client.get("box")
    assert info.snapshot is not None
    assert info.snapshot.digest == new["digest"]
    assert [one.digest for one in node.client.snapshots("box")][:2] == [one.digest for one in node.line[:2]]
    record = Folder(node.home.sandboxes / BOX).load()
    assert (record.parent, record.snapshots[2].stdout) == (new["digest"], 5)
    assert node.fcrun.said("verify").startswith("the store: sound: 4 snapshots")
    assert "it was compact already" in node.fcrun.said("compact", "box")
    (event,) = [one for one in node.client.events(follow=False, since=0) if one.kind == "sandbox.compacted"]
    assert event.details["before"] == old.digest
    node.client.shutdown()
    ensure_running(node.home)
    assert node.client.store.inspect("box")["digest"] == new["digest"]


def test_compact_leaves_what_a_fork_names(node: Node) -> None:
    forked = node.line[1]
    record = Folder(node.home.sandboxes / FORK).load()
    node.client.shutdown()
    Folder(node.home.sandboxes / FORK).save(replace(record, parent=forked.digest, snapshots=[]))
    ensure_running(node.home)
    done = node.client.store.compact(forked.digest)
    assert done.freed_bytes == 0
    assert node.bench.store.get(forked.digest) == forked
    node.client.remove("box", force=True)
    assert node.bench.store.get(forked.digest) == forked  # the fork still needs it
    swept = node.client.store.collect()
    assert forked.digest not in swept.forgotten
    node.client.remove("fork")
    assert forked.digest in node.client.store.collect().forgotten


def test_a_snapshot_that_a_fork_has_too_is_given_up_by_the_one_it_is_of(node: Node) -> None:
    shared = node.line[0]
    record, own = (Folder(node.home.sandboxes / ref).load() for ref in (FORK, BOX))
    node.client.shutdown()
    kept = own.snapshot(shared.digest)
    assert kept is not None
    Folder(node.home.sandboxes / FORK).save(replace(record, parent=shared.digest, snapshots=[kept]))
    ensure_running(node.home)
    assert node.client.store.remove(shared.digest) == 0
    assert Folder(node.home.sandboxes / BOX).load().snapshot(shared.digest) is None
    assert Folder(node.home.sandboxes / FORK).load().snapshot(shared.digest) is not None
    assert node.bench.store.get(shared.digest) == shared


def test_a_run_that_gives_up_what_its_fork_began_from_leaves_it_to_the_other_one(node: Node) -> None:
    shared = node.line[1]
    node.client.shutdown()
    kept = Folder(node.home.sandboxes / BOX).load().snapshot(shared.digest)
    assert kept is not None
    record = Folder(node.home.sandboxes / FORK).load()
    Folder(node.home.sandboxes / FORK).save(replace(record, snapshots=[kept, *record.snapshots]))
    ensure_running(node.home)
    machines = NodeMachines(node.home)
    asyncio.run(machines.forget(FORK, shared.digest))
    assert Folder(node.home.sandboxes / FORK).load().snapshot(shared.digest) is None
    assert Folder(node.home.sandboxes / BOX).load().snapshot(shared.digest) is not None
    with pytest.raises(NotFound):
        asyncio.run(machines.forget(FORK, shared.digest))
    machines.close()
    assert node.fcrun.said("verify").startswith("the store: sound: 4 snapshots")


def test_rm(node: Node) -> None:
    assert node.fcrun.said("rm", node.line[0].digest[:30]) == f"{node.line[0].digest[:30]}\n"
    with pytest.raises(NotFound):
        node.bench.store.get(node.line[0].digest)
    assert node.fcrun.said("rm", "--force", "box") == "box\n"
    record = Folder(node.home.sandboxes / BOX).load()
    assert ([kept.info.digest for kept in record.snapshots], record.parent) == ([node.line[1].digest], None)
    info = node.client.get("box")
    assert info.snapshot is not None and info.snapshot.digest == node.line[1].digest  # it goes back to that one
    assert node.fcrun.said("verify").startswith("the store: sound: 2 snapshots")


def test_rm_of_one_that_does_not_read(node: Node) -> None:
    path = node.bench.store.blob_path(node.line[0].digest)
    path.write_bytes(path.read_bytes()[1:])
    (row,) = [row for row in node.fcrun.said("ls").splitlines() if "does not read" in row]
    assert row.split()[0] == short(node.line[0])
    status, _, err = node.fcrun("gc")
    assert status == 0
    assert f"fcrun snapshot rm --force {short(node.line[0])}" in err
    node.fcrun.said("rm", "--force", short(node.line[0]))
    assert node.fcrun.said("verify").startswith("the store: sound: 3 snapshots")


def test_gc(node: Node) -> None:
    unnamed = node.bench.capture(node.fork, {9: block(99)}, DISK, sandbox_id="0" * 12)
    node.bench.store.add(b"left by a crash", "x/y")
    dry = node.fcrun.said("gc", "--dry-run")
    assert dry.splitlines()[0] == short(unnamed)
    assert "Would delete: 1 snapshot, 5 blobs" in dry
    assert node.bench.store.get(unnamed.digest) == unnamed
    assert json.loads(node.fcrun.said("gc", "--dry-run", "--format", "json"))["forgotten"] == [unnamed.digest]
    assert node.fcrun.said("gc", "-q") == f"{short(unnamed)}\n"
    assert node.fcrun.said("gc") == "Deleted: nothing. Freed 0B.\n"
    assert node.fcrun.said("verify").startswith("the store: sound: 4 snapshots")


def test_a_node_that_starts_takes_what_killed_builds_of_templates_left(node: Node) -> None:
    node.client.shutdown()
    for name in ("dead.0a1b2c3d.new", "half.gone"):
        (node.home.templates / name).mkdir()
        (node.home.templates / name / "memory").write_bytes(b"some of it")
    ensure_running(node.home)
    assert [path.name for path in node.home.templates.iterdir()] == ["warm"]
    assert node.fcrun.said("verify").startswith("the store: sound: 4 snapshots")


def test_a_tag_keeps_and_names(node: Node) -> None:
    kept = node.bench.capture(node.fork, {9: block(98)}, DISK, sandbox_id="0" * 12)
    size = node.bench.store.blob_path(kept.digest).stat().st_size
    node.bench.store.tag(
        "keep/this:1", manifest.Descriptor(media_type=manifest.MANIFEST, digest=kept.digest, size=size)
    )
    assert node.fcrun.said("gc") == "Deleted: nothing. Freed 0B.\n"
    assert node.client.store.inspect("keep/this:1")["tags"] == ["keep/this:1"]
    status, _, err = node.fcrun("rm", "keep/this:1")
    assert (status, "is tagged keep/this:1" in err) == (125, True)


def test_help(node: Node) -> None:
    out = node.fcrun.said()
    assert "Usage: fcrun snapshot COMMAND" in out
    for name in ("ls", "inspect", "tree", "verify", "explain", "rm", "compact", "gc"):
        assert f"\n  {name} " in out
        assert f"fcrun snapshot {name}" in node.fcrun.said(name, "--help")
