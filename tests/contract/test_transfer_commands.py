"""``fcrun snapshot push``, ``pull`` and ``evict`` between two nodes and a store; nothing here needs a machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from perdure.cli.fcrun import _remote
from perdure.client.node import NodeClient, ensure_running
from perdure.errors import NotFound, PerdureError, Unavailable
from perdure.execution.snapshots import stores, transfer
from perdure.formats.manifest import Snapshot
from perdure.host.paths import Home
from perdure.testing import stores as bench
from perdure.testing.commands import Fcrun
from perdure.testing.proxy import Asked, Fault, FaultingProxy
from perdure.testing.sandboxes import sleeping
from perdure.testing.snapshots import BLOCKS, block, blocks_of

BOX = "b0b0b0b0b0b0"
DEADLINE_S = 60.0


class Node:
    """A home with a running fcrund."""

    def __init__(self, root: Path) -> None:
        self.home = Home(root, root / "assets").make()
        self.bench = bench.Node(root)
        self.client = NodeClient(self.home)
        self.fcrun = Fcrun(self.home, ("snapshot",))

    def suspended(self) -> Snapshot:
        """A sandbox ``box`` that sleeps."""
        template = self.bench.template(blocks_of([1] * BLOCKS))
        changed = {place: block(1000 + place) for place in range(200)}
        image = self.bench.image()
        snapshot = self.bench.capture(
            template, changed, blocks_of(range(30)), image=image, working_set=(90, 5), sandbox_id=BOX
        )
        names = {"image_digest": image, "template": template.name, "template_digest": template.digest}
        sleeping(self.home.sandboxes, BOX, "box", [snapshot], **names)
        return snapshot

    def layer(self, snapshot: Snapshot) -> Path:
        return self.bench.store.blob_path(snapshot.memory.layers[0].digest)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[tuple[Node, Node, Snapshot]]:
    """One with a sandbox that sleeps, one with nothing, the snapshot."""
    here, there = Node(tmp_path / "here"), Node(tmp_path / "there")
    snapshot = here.suspended()
    try:
        for node in (here, there):
            ensure_running(node.home)
        yield here, there, snapshot
    finally:
        for node in (here, there):
            node.client.shutdown()
            node.bench.cache.close()


@pytest.mark.parametrize("kind", ["folder", "registry"])
def test_pushed_evicted_and_pulled_elsewhere(
    nodes: tuple[Node, Node, Snapshot], kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    here, there, snapshot = nodes
    folder = (tmp_path / "store").as_uri()
    url = folder if kind == "folder" else f"oci+http://{request.getfixturevalue('registry')}/commands"
    pushed = json.loads(here.fcrun.said("push", "--format", "json", "box", f"{url}:v1"))
    assert (pushed["digest"], pushed["url"], pushed["tag"]) == (snapshot.digest, url, "v1")
    assert pushed["sent_bytes"] > snapshot.memory.layers[0].size
    again = here.fcrun.said("push", "box", url)  # under its own name
    assert again.splitlines()[0] == snapshot.digest
    assert f"{url}:{transfer.tag_of(snapshot.digest)}, sent 0B" in again

    assert here.layer(snapshot).exists()
    evicted = json.loads(here.fcrun.said("evict", "--format", "json", "box"))
    assert evicted == {"digest": snapshot.digest, "url": url, "freed_bytes": snapshot.memory.layers[0].size}
    assert not here.layer(snapshot).exists()
    assert "not read, as they are kept elsewhere: 1 layer" in here.fcrun.said("verify", "box")

    pulled = json.loads(there.fcrun.said("pull", "--lazy", "--format", "json", f"{url}:v1"))
    assert (pulled["digest"], pulled["sandbox_id"]) == (snapshot.digest, BOX)
    assert pulled["elsewhere_bytes"] == snapshot.memory.layers[0].size
    assert not there.layer(snapshot).exists()
    assert there.fcrun.said("pull", "-q", f"{url}@{snapshot.digest}") == f"{snapshot.digest}\n"  # the whole of it
    assert there.layer(snapshot).exists()
    assert there.fcrun.said("gc") == "Deleted: nothing. Freed 0B.\n"
    assert there.client.store.inspect(snapshot.digest)["working_set_blocks"] == 2
    assert there.fcrun.said("rm", snapshot.digest[:20]) == f"{snapshot.digest[:20]}\n"
    assert there.client.store.list() == []
    assert not there.layer(snapshot).exists()


def test_what_is_not_restored_as_it_is_elsewhere_is_said(nodes: tuple[Node, Node, Snapshot], tmp_path: Path) -> None:
    """A thorough verification is no failure there, but never silent about it; what it names brings the memory here."""
    here, _, snapshot = nodes
    url = (tmp_path / "store").as_uri()
    here.fcrun.said("push", "box", f"{url}:v1")
    here.fcrun.said("evict", "box")
    pull = f"fcrun snapshot pull {url}@{snapshot.digest}"
    reason = f"its memory is kept elsewhere: {url}"
    line, hint, summary = here.fcrun.said("verify", "--thorough", "box").splitlines()
    assert line == f"snapshot {snapshot.digest} was not restored: {reason}"
    assert hint == f"  Bring the memory here and verify it again: {pull}"
    assert summary.startswith("box: sound: 1 snapshot, ")
    assert ", 0 restored, 1 not restored; " in summary
    assert here.fcrun.said("verify", "--thorough", "-q", "box").splitlines() == [line]
    report = json.loads(here.fcrun.said("verify", "--thorough", "--format", "json"))
    assert report.keys().isdisjoint({"findings", "restored"})  # none, and 0
    (left,) = report["not_restored"]
    assert (left["snapshot"], left["reason"]) == (snapshot.digest, reason)
    assert pull in left["hint"]
    assert "not restored" not in here.fcrun.said("verify", "box")  # nobody asked for it
    here.fcrun.said(*pull.split()[2:])
    assert here.layer(snapshot).exists()
    assert "kept elsewhere" not in here.fcrun.said("verify", "box")


def test_a_layer_that_came_with_another_snapshot(nodes: tuple[Node, Node, Snapshot], tmp_path: Path) -> None:
    """What was never pushed by itself is not there under its own digest, although its memory is: the error helps."""
    here, _, snapshot = nodes
    url = (tmp_path / "store").as_uri()
    image = snapshot.config.image_digest
    other = here.bench.capture(snapshot, {3: block(7)}, blocks_of(range(30)), image=image, sandbox_id="f" * 12)
    here.fcrun.said("push", other.digest, url)
    here.fcrun.said("evict", other.digest)
    (hint,) = [
        line for line in here.fcrun.said("verify", "--thorough", "box").splitlines() if "fcrun snapshot pull" in line
    ]
    status, _, err = here.fcrun(*hint.partition("fcrun snapshot ")[2].split())
    push = f"fcrun snapshot push {snapshot.digest} {url}"
    assert (status, push in err) == (125, True)
    here.fcrun.said(*push.split()[2:])
    here.fcrun.said(*hint.partition("fcrun snapshot ")[2].split())
    assert here.layer(snapshot).exists()


def test_a_pull_of_what_a_sandbox_has_goes_with_it(nodes: tuple[Node, Node, Snapshot], tmp_path: Path) -> None:
    here, _, snapshot = nodes
    url = str(tmp_path / "store")
    here.client.store.push("box", url, tag="v1")
    here.client.store.pull(url, "v1")
    assert here.client.store.inspect("box")["tags"] == []
    here.client.remove("box")
    assert here.client.store.list() == []
    here.client.store.pull(url, "v1")
    here.client.shutdown()
    ensure_running(here.home)
    assert [one.digest for one in here.client.store.list()] == [snapshot.digest]


class Away:
    """A snapshot in a registry, which gives nothing of its memory before ``goes_on``."""

    def __init__(self, registry: str, proxy: FaultingProxy, root: Path) -> None:
        self.proxy = proxy
        self.reached = threading.Event()
        name = f"away/{root.name}"
        self.url, self.straight = f"oci+http://{proxy.host}/{name}", f"oci+http://{registry}/{name}"
        with bench.Node(root / "away") as away:
            template = away.template(blocks_of([2] * BLOCKS))
            changed = {place: block(5000 + place) for place in range(100)}
            self.snapshot = away.capture(template, changed, blocks_of(range(9)), image=away.image(b"another"))
            remote = stores.open_store(self.straight)
            transfer.push(away.store, away.templates, away.images, self.snapshot, remote, "v1")
            remote.close()
        proxy.always = [Fault("stall", self._is_memory)]

    def _is_memory(self, asked: Asked) -> bool:
        if is_it := self.snapshot.memory.layers[0].digest in asked.path:
            self.reached.set()
        return is_it

    def goes_on(self) -> None:
        self.proxy.always = []
        self.proxy.over.set()


@pytest.fixture
def away(registry: str, tmp_path: Path) -> Iterator[Away]:
    with FaultingProxy(registry) as proxy:
        yield Away(registry, proxy, tmp_path)


def test_removals_and_collections_end_while_pulls_stall(nodes: tuple[Node, Node, Snapshot], away: Away) -> None:
    here, _, own = nodes
    count = (os.cpu_count() or 1) + 5  # as many as asyncio has threads, and one
    with ThreadPoolExecutor(count) as pool:
        pulls = [pool.submit(here.client.store.pull, away.url, "v1") for _ in range(count)]
        try:
            assert away.reached.wait(DEADLINE_S)
            here.client.remove("box")
            assert here.fcrun.said("gc") == "Deleted: nothing. Freed 0B.\n"
            assert here.client.store.list() == []
            assert not here.layer(own).exists()
            assert not any(pull.done() for pull in pulls)
        finally:
            away.goes_on()
        assert {pull.result().digest for pull in pulls} == {away.snapshot.digest}
    assert [one.digest for one in here.client.store.list()] == [away.snapshot.digest]
    assert here.client.store.verify().findings == []


def test_a_node_ends_while_a_pull_stalls(nodes: tuple[Node, Node, Snapshot], away: Away) -> None:
    here, _, own = nodes
    with ThreadPoolExecutor(1) as pool:
        pull = pool.submit(here.client.store.pull, away.url, "v1")
        try:
            assert away.reached.wait(DEADLINE_S)
            here.client.shutdown()
            ensure_running(here.home)
            assert here.bench.left_over() == []
            assert [one.digest for one in here.client.store.list()] == [own.digest]
        finally:
            away.goes_on()
        with pytest.raises(PerdureError):
            pull.result()
    assert here.client.store.pull(away.straight, "v1").digest == away.snapshot.digest
    assert here.client.store.verify().findings == []


def test_a_node_in_the_foreground_ends_while_a_pull_stalls(nodes: tuple[Node, Node, Snapshot], away: Away) -> None:
    """As a service manager runs it: the process is gone, and with it the lock that the next one needs."""
    here, *_ = nodes
    here.client.shutdown()
    env = {**os.environ, "PERDURE_HOME": str(here.home.root), "PERDURE_CACHE": str(here.home.cache)}
    with (
        subprocess.Popen(
            [sys.executable, "-m", "perdure.node"], env=env, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as node,
        ThreadPoolExecutor(1) as pool,
    ):
        assert node.stderr is not None
        while b"serving" not in (line := node.stderr.readline()):
            assert line, "the node ended"
        pull = pool.submit(here.client.store.pull, away.url, "v1")
        try:
            assert away.reached.wait(DEADLINE_S)
            node.terminate()
            assert node.wait(DEADLINE_S / 3) == 0  # the stalled pull takes longer to give up
            ensure_running(here.home)
        finally:
            away.goes_on()
        with pytest.raises(PerdureError):
            pull.result()


def test_errors_help(nodes: tuple[Node, Node, Snapshot], tmp_path: Path) -> None:
    here, there, _ = nodes
    url, port = str(tmp_path / "store"), "127.0.0.1:9"  # discard: nobody listens
    for argv, words in (
        (["push", "box", "ftp://x/y"], "is not a store"),
        (["push", "nope", url], "no such snapshot or sandbox: nope"),
        (["push", "--tag", "a/b", "box", url], "is not a tag"),
        (["push", "box", f"{url}@sha256:{'0' * 64}"], "not to a digest"),
        (["push", "box", str(here.home.store)], "is this node's own store"),
        (["push", "box", f"oci+http://{port}/x"], f"oci+http://{port}/x"),
        (["evict", "box"], "Push it first: fcrun snapshot push"),
        (["evict", "--from", url, "box"], "Push the snapshot there first"),
        (["pull", url], "Write URL:TAG"),
        (["pull", f"{url}:v1"], "It has no snapshot."),
    ):
        status, out, err = here.fcrun(*argv)
        assert (status, out) == (125, ""), argv
        assert words in err, (argv, err)
        assert err.startswith("fcrun"), argv
    here.fcrun.said("push", "box", f"{url}:v1")
    with pytest.raises(NotFound) as refused:
        there.client.store.pull(url, "v2")
    assert refused.value.hint == "It has: v1"
    with pytest.raises(NotFound):
        there.client.store.pull(url, f"sha256:{'0' * 64}")
    with pytest.raises(Unavailable):
        there.client.store.pull(f"oci+http://{port}/x", "v1")
    assert there.client.store.list() == []


def test_wrong_bytes_are_named(nodes: tuple[Node, Node, Snapshot], tmp_path: Path) -> None:
    here, there, snapshot = nodes
    url = str(tmp_path / "store")
    here.fcrun.said("push", "box", f"{url}:v1")
    path = tmp_path / "store" / "blobs" / "sha256" / here.layer(snapshot).name
    path.write_bytes(b"x" * path.stat().st_size)
    status, _, err = there.fcrun("pull", f"{url}:v1")
    assert (status, path.name in err) == (125, True)
    status, _, err = here.fcrun("evict", "box")
    assert (status, here.layer(snapshot).exists()) == (125, True)
    assert there.client.store.list() == []


@pytest.mark.parametrize(
    ("place", "url", "reference"),
    [
        ("oci://h:5000/r:v1", "oci://h:5000/r", "v1"),
        ("oci://h:5000/r", "oci://h:5000/r", ""),
        ("oci+http://127.0.0.1:5000/a/b", "oci+http://127.0.0.1:5000/a/b", ""),
        ("s3://b/p:x", "s3://b/p", "x"),
        ("/a/b:t", "/a/b", "t"),
        ("/a:b/c", "/a:b/c", ""),
        (f"oci://h/r@sha256:{'0' * 64}", "oci://h/r", f"sha256:{'0' * 64}"),
    ],
)
def test_where_a_tag_begins(place: str, url: str, reference: str) -> None:
    assert _remote.split(place) == (url, reference)
    assert _remote.split(place, "t") == (place, "t")


def test_the_help_names_the_forms_that_are_understood() -> None:
    assert _remote.FORMS == stores.FORMS


def test_exported_to_a_file_and_imported_elsewhere(nodes: tuple[Node, Node, Snapshot], tmp_path: Path) -> None:
    here, there, snapshot = nodes
    path = tmp_path / "box.snapshot"
    assert here.fcrun.said("export", "-o", str(path), "box") == ""
    assert there.fcrun.said("import", str(path)) == f"{snapshot.digest}\n"
    assert there.layer(snapshot).read_bytes() == here.layer(snapshot).read_bytes()
    assert there.fcrun.said("gc") == "Deleted: nothing. Freed 0B.\n"  # it is kept
    there.fcrun.said("rm", snapshot.digest)
    assert there.client.store.list() == []
    data = b"".join(here.client.store.export(snapshot.digest))
    assert data == path.read_bytes()
    status, out, err = there.fcrun("import", "--format", "json", "-", stdin=data)
    assert (status, err, json.loads(out)["digest"]) == (0, "", snapshot.digest)
    there.fcrun.said("rm", snapshot.digest)

    for bad, word in ((data[:-2000], "cut short"), (b"hello", "is no tar"), (data[:600], "")):
        status, out, err = there.fcrun("import", "-", stdin=bad)
        assert (status, out) == (125, "") and "the archive is no exported snapshot" in err and word in err
    assert there.client.store.list() == []
    assert not list(there.home.run.glob("upload-*"))
    status, _, err = there.fcrun("export", "-o", str(tmp_path / "none"), "box")
    assert status == 125 and not (tmp_path / "none").exists()
    status, _, err = here.fcrun("export", "-o", str(tmp_path / "no/such/folder"), "box")
    assert status == 125 and "no/such/folder" in err

    layer = here.layer(snapshot)  # what is damaged is not taken for a whole
    layer.chmod(0o600)
    with layer.open("r+b") as file:
        file.seek(layer.stat().st_size // 2)
        file.write(b"\xff\x00\xff")
    status, _, err = here.fcrun("export", "-o", str(tmp_path / "damaged"), "box")
    assert status == 125 and "broke off" in err
    assert [path.name for path in tmp_path.glob("damaged*")] == []
