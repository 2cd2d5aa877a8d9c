"""``fcrun events, rename, tag, info`` and ``fcrun system`` against a real node; nothing here needs a machine."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from perdure.client.node import NodeClient, ensure_running
from perdure.formats.manifest import Snapshot
from perdure.host.paths import Home
from perdure.model import SandboxSpec
from perdure.testing.commands import Fcrun
from perdure.testing.tinynodes import BOX, box_asleep, new_home, root_tar, tiny_node

DEADLINE_S = 30.0


@dataclass
class Node:
    """A running fcrund with the image ``tiny``, and a suspended sandbox ``box`` with a kept disk of 1 MiB."""

    home: Home
    client: NodeClient
    fcrun: Fcrun
    snapshot: Snapshot

    def create(self, name: str, image: str = "tiny") -> str:
        return self.client.create(SandboxSpec(image=image, command=["/bin/true"], name=name)).id

    def events(self, *argv: str) -> list[str]:
        """What ``fcrun events`` tells of all that has happened until now."""
        return self.fcrun.said("events", "--until", str(time.time()), *argv).splitlines()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    home = new_home(tmp_path)
    snapshot = box_asleep(home)
    (home.sandboxes / BOX / "disk").write_bytes(b"d" * (1 << 20))
    with tiny_node(home) as client:
        yield Node(home, client, Fcrun(home), snapshot)


def test_a_sandbox_gets_another_name(node: Node) -> None:
    one, other = node.create("one"), node.create("other")
    assert node.fcrun("rename", "one", "first") == (0, "", "")
    assert {info.id: info.name for info in node.client.list()} == {one: "first", other: "other", BOX: "box"}
    status, _, said = node.fcrun("rename", "first", "other")
    assert status == 125 and f"taken by sandbox {other}" in said
    for name in ("-x", "a/b", "", "x" * 64):
        status, _, said = node.fcrun("rename", "first", "--", name) if name == "-x" else node.fcrun("rename", one, name)
        assert status == 125 and "name" in said, name
    status, _, said = node.fcrun("rename", "one", "third")
    assert status == 125 and "no such sandbox: one" in said
    node.client.shutdown()
    ensure_running(node.home)
    assert node.client.get("first").id == one  # also after a restart
    node.fcrun.said("rename", "box", "chest")  # one that sleeps
    assert node.client.get("chest").id == BOX


def test_an_image_gets_more_names(node: Node) -> None:
    digest = node.client.images()[0].digest
    assert node.fcrun("tag", "tiny", "mine:v1") == (0, "", "")
    assert node.fcrun("tag", digest[7:19], "localhost:5000/team/tiny") == (0, "", "")
    names = {"tiny:latest", "mine:v1", "localhost:5000/team/tiny:latest"}
    assert {image.name for image in node.client.images()} == names
    assert {image.digest for image in node.client.images()} == {digest}
    node.fcrun.said("tag", "tiny", "mine:v1")  # it has that name already
    assert {image.name for image in node.client.images()} == names
    other = node.client.import_image("other", root_tar({"etc/other": b"x"})).digest
    node.fcrun.said("tag", "other", "mine:v1")  # the name moves
    assert {image.name: image.digest for image in node.client.images()}["mine:v1"] == other
    assert node.client.create(SandboxSpec(image="mine:v1", command=["/bin/true"])).image_digest == other
    for argv, word in (
        (("nothing", "x"), "no image"),
        (("tiny", "UPPER"), "is no name"),
        (("tiny", "a:b:c"), "no name"),
    ):
        status, _, said = node.fcrun("tag", *argv)
        assert status == 125 and word in said
    node.fcrun.said("rmi", "tiny")
    assert {image.name for image in node.client.images() if image.digest == digest} == {
        "localhost:5000/team/tiny:latest"
    }


def test_events_are_told_as_docker_tells_them(node: Node) -> None:
    began = time.time()
    one = node.create("one")
    node.client.rename("one", "first")
    node.fcrun.said("tag", "tiny", "mine")
    node.client.remove("first")
    lines = node.events("--since", str(began))
    words = [line.split(" ", 3)[1:3] for line in lines]
    assert words == [
        ["sandbox", "created"],
        ["sandbox", "renamed"],
        ["image", "tagged"],
        ["sandbox", "removed"],
    ]
    assert lines[1].endswith(f"sandbox renamed {one} (before=one, name=first)")
    assert lines[0][10] == "T" and lines[0].split()[0].endswith("Z") and len(lines[0].split()[0]) == 30

    def actions(*filters: str) -> list[str]:
        asked = [word for one in filters for word in ("-f", one)]
        return [line.split()[2] for line in node.events(*asked)]

    assert actions("event=created", "event=removed", "sandbox=first") == ["removed"]
    assert actions("container=one") == ["created"]
    assert actions("type=image", "image=mine") == ["tagged"]
    assert len(node.events("--filter", f"sandbox={one[:6]}")) == 3
    assert node.events("--format", "{{.Type}}/{{.Action}} {{.Actor.Attributes.name}}", "-f", "event=renamed") == [
        "sandbox/renamed first"
    ]
    told = [json.loads(line) for line in node.events("--format", "json", "--since", "1h")]
    assert [one["Action"] for one in told][-1] == "removed" and told[0]["timeNano"] // 10**9 == told[0]["time"]
    assert node.events("--since", "2100-01-01T00:00:00Z") == []
    for argv, word in (
        (("--filter", "colour=red"), "colour=red"),
        (("--since", "soon"), "is no time"),
        (("--format", "{{.Nothing}}"), "no field"),
    ):
        status, _, said = node.fcrun("events", "--until", "0s", *argv)
        assert status == 125 and word in said
    status, _, said = node.fcrun("events", "--until", "never")
    assert status == 125 and "--until" in said


def test_events_are_followed(node: Node) -> None:
    """They come as they happen, until somebody has seen enough."""
    command = [sys.executable, "-m", "perdure.cli.fcrun", "events", "--since", "1h", "-f", "sandbox=late"]
    homes = {"PERDURE_HOME": str(node.home.root), "PERDURE_CACHE": str(node.home.cache)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | homes) as following:
        assert following.stdout is not None
        node.create("late")
        assert "sandbox created" in following.stdout.readline()
        node.client.rename("late", "later")
        node.client.rename("later", "late")
        assert "name=late)" in following.stdout.readline()
        following.send_signal(signal.SIGINT)
        assert following.wait(DEADLINE_S) == 130


def test_events_end_at_a_moment_though_nothing_happens(node: Node) -> None:
    until = time.time() + 0.3
    assert list(node.client.events(until=until)) == []
    assert time.time() >= until


def test_what_the_disk_is_taken_by(node: Node) -> None:
    node.client.import_image("other", root_tar({"etc/other": b"x" * 50000}))
    node.create("over")
    used = {use.kind: use for use in node.client.disk_use()}
    assert list(used) == ["images", "sandboxes", "volumes", "kept-disks", "snapshots", "templates", "frames"]
    assert (used["images"].total, used["images"].active) == (2, 1)
    assert 0 < used["images"].reclaimable_bytes < used["images"].size_bytes
    assert (used["sandboxes"].total, used["sandboxes"].active) == (2, 0)
    assert (used["kept-disks"].total, used["kept-disks"].size_bytes) == (1, 1 << 20)
    assert used["sandboxes"].size_bytes < 1 << 20
    assert (used["snapshots"].total, used["snapshots"].active, used["snapshots"].reclaimable_bytes) == (1, 1, 0)
    assert (used["templates"].total, used["templates"].active) == (1, 1)
    assert used["frames"].size_bytes == used["frames"].reclaimable_bytes == 0

    table = node.fcrun.said("system", "df").splitlines()
    assert table[0].split() == ["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"]
    assert table[4].split() == ["Kept", "disks", "1", "0", "1.05MB", "1.05MB", "(100%)"]
    assert node.fcrun.said("system", "df", "--format", "{{.Type}} {{.Active}}/{{.TotalCount}}").splitlines()[0] == (
        "Images 1/2"
    )
    assert [json.loads(line)["kind"] for line in node.fcrun.said("system", "df", "--format", "json").splitlines()] == (
        list(used)
    )


def test_prune_removes_what_nothing_needs(node: Node) -> None:
    node.client.import_image("tiny", root_tar({"etc/new": b"x" * 50000}))  # the one before has no name now
    node.client.import_image("other", root_tar({"etc/other": b"x"}))
    node.create("over")
    status, asked, said = node.fcrun("system", "prune")  # there is nobody to ask
    assert status == 125 and "--force" in said and "WARNING" in asked
    assert {info.name for info in node.client.list()} == {"over", "box"}

    told = node.fcrun.said("system", "prune", "--force").splitlines()
    assert told[0] == "Deleted sandboxes:" and told[1] == "over"
    assert told[3] == "Deleted images:" and told[4].startswith("sha256:")
    assert told[-1].startswith("Total reclaimed space: ") and not told[-1].endswith(" 0B")
    assert {info.name for info in node.client.list()} == {"box"}  # it sleeps, and is not over
    assert {image.name for image in node.client.images()} == {"tiny:latest", "other:latest"}
    assert node.client.store.list()[0].digest == node.snapshot.digest

    assert "other:latest" in node.fcrun.said("system", "prune", "-a", "-f")
    assert node.client.images() == []
    assert node.fcrun.said("system", "prune", "-a", "-f") == "Total reclaimed space: 0B\n"


def test_info(node: Node) -> None:
    node.create("one")
    lines = node.fcrun.said("info").splitlines()
    assert f"Home: {node.home.root}" in lines and "Images: 1" in lines and "Sandboxes: 2" in lines
    assert " Created: 1" in lines and " Suspended: 1" in lines
    assert node.fcrun.said("system", "info") == node.fcrun.said("info")
    assert json.loads(node.fcrun.said("info", "-f", "json"))["images"] == 1
    assert node.fcrun.said("info", "--format", "{{.home}}") == f"{node.home.root}\n"


def complete(node: Node, *words: str) -> list[str]:
    """What bash itself would offer for the last word, by the script that fcrun prints for it."""
    typed = " ".join(map(shlex.quote, ("fcrun", *words)))
    script = f"""
        source <({sys.executable} -m perdure.cli.fcrun completion bash)
        fcrun() {{ {sys.executable} -m perdure.cli.fcrun "$@"; }}
        COMP_WORDS=({typed}); COMP_CWORD={len(words)}
        _fcrun; printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    homes = {"PERDURE_HOME": str(node.home.root), "PERDURE_CACHE": str(node.home.cache)}
    done = subprocess.run(
        ["bash", "-c", script], env=os.environ | homes, capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_a_shell_completes_what_is_typed(node: Node) -> None:
    node.create("bold")
    node.client.tag_image("tiny", "team/tiny:v1")
    assert complete(node, "sus") == ["suspend"]
    assert complete(node, "snapshot", "exp") == ["explain", "export"]
    assert complete(node, "rm", "") == ["bold", "box"]
    assert complete(node, "rm", "-f", "bold", "bo") == ["bold", "box"]  # it takes several
    assert complete(node, "rename", "bold", "b") == []  # a new name: nothing to offer
    assert complete(node, "rmi", "t") == ["team/tiny:v1", "tiny"]
    assert complete(node, "run", "-m", "512m", "--name", "x", "ti") == ["tiny"]
    assert complete(node, "run", "tiny", "bo") == []  # words of its own command
    assert complete(node, "snapshot", "rm", node.snapshot.digest[7:10]) == [node.snapshot.digest[7:19]]
    assert complete(node, "system", "df", "--f") == ["--format"]
    assert complete(node, "snapshot", "tree", "--format", "") == ["json", "tree"]
    assert complete(node, "host", "st") == ["start", "status", "stop"]
    assert complete(node, "nonsense", "") == complete(node, "cp", "--", "/et") == []


def test_a_completion_starts_no_node(tmp_path: Path) -> None:
    fcrun = Fcrun(Home(tmp_path / "home", tmp_path / "cache"))
    assert fcrun("completion", "--words", "rm", "") == (0, "", "")
    assert not (tmp_path / "home").exists()
    assert "compdef" in fcrun.said("completion", "zsh") and "complete -c fcrun" in fcrun.said("completion", "fish")
    status, _, said = fcrun("completion")
    assert status == 125 and "which shell" in said
