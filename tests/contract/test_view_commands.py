"""``fcrun pause, stats, top, diff, commit, export`` against a real node, as far as no machine is needed."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from perdure.cli.fcrun import stats
from perdure.client.node import NodeClient
from perdure.execution.images.library import ImageLibrary
from perdure.formats.manifest import Snapshot
from perdure.host.paths import Home
from perdure.model import SandboxSpec
from perdure.testing.commands import Fcrun
from perdure.testing.tinynodes import BOX, box_asleep, new_home, tiny_node

DEADLINE_S = 60.0


@dataclass
class Node:
    """A running fcrund with the image ``tiny``, a suspended sandbox ``box`` and a created one, ``new``."""

    home: Home
    client: NodeClient
    fcrun: Fcrun
    snapshot: Snapshot

    def refused(self, *argv: str) -> str:
        """Why: the command ends with 125, and prints nothing."""
        status, out, said = self.fcrun(*argv)
        assert (status, out) == (125, ""), said
        return said


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    home = new_home(tmp_path)
    snapshot = box_asleep(home)
    with tiny_node(home) as client:
        client.create(SandboxSpec(image="tiny", command=["/bin/true"], name="new"))
        yield Node(home, client, Fcrun(home), snapshot)


def test_what_cannot_be_paused_says_what_to_do(node: Node) -> None:
    assert "fcrun: sandbox box is suspended: it cannot pause" in node.refused("pause", "box")
    assert "fcrun resume" in node.refused("unpause", "box")
    assert "sandbox new is created" in node.refused("pause", "new")
    assert "no such sandbox: nothing" in node.refused("pause", "nothing")
    status, out, said = node.fcrun("unpause", "nothing", "new")  # each is tried
    assert (status, out) == (125, "") and "nothing" in said and "new is created" in said


def test_stats_of_what_does_not_run(node: Node) -> None:
    lines = node.fcrun.said("stats", "--no-stream").splitlines()
    assert lines[0].split("  ")[0] == "SANDBOX ID" and lines[0].split()[-3:] == ["I/O", "PIDS", "STORED"]
    assert len(lines) == 2 and lines[1].split()[:2] == [BOX, "box"]
    row = json.loads(node.fcrun.said("stats", "--no-stream", "--format", "json"))
    assert (row["CPUPerc"], row["MemUsage"], row["NetIO"], row["PIDs"]) == ("0.00%", "0B / 0B", "0B / 0B", "0")
    assert row["Stored"] not in ("", "0B")
    (usage,) = node.client.stats()
    assert usage.stored_bytes == node.snapshot.info().stored_bytes
    names = node.fcrun.said("stats", "--no-stream", "-a", "--format", "{{.Name}} {{.State}}").splitlines()
    assert sorted(names) == ["box suspended", "new created"]
    assert node.fcrun.said("stats", "--no-stream", "--format", "table {{.Name}}\t{{.PIDs}}", "new").split() == [
        *("NAME", "PIDS", "new", "0")
    ]
    assert "no such sandbox: nothing" in node.refused("stats", "--no-stream", "nothing")
    assert "no field" in node.refused("stats", "--no-stream", "--format", "{{.Nothing}}")


def test_stats_go_on_on_a_terminal(node: Node) -> None:
    ours, theirs = os.openpty()
    homes = {"PERDURE_HOME": str(node.home.root), "PERDURE_CACHE": str(node.home.cache)}
    command = [sys.executable, "-m", "perdure.cli.fcrun", "stats"]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=theirs, env=os.environ | homes) as shown:
        os.close(theirs)
        said = b""
        while said.count(stats.CLEAR.encode()) < 2:
            said += os.read(ours, 4096)
        shown.send_signal(signal.SIGINT)
        assert shown.wait(DEADLINE_S) == 130
    os.close(ours)
    assert said.count(b"SANDBOX ID") >= 1 and b"box" in said and b"Traceback" not in said


def test_what_is_wrong_is_said_before_anything_is_started(node: Node, tmp_path: Path) -> None:
    assert "sandbox box is suspended" in node.refused("top", "box")
    assert "sandbox new is created" in node.refused("top", "new", "-o", "pid")
    assert "colour" in node.refused("top", "box", "-o", "pid,colour")
    assert "no such sandbox" in node.refused("diff", "nothing")
    assert "no such sandbox" in node.refused("export", "-o", str(tmp_path / "out.tar"), "nothing")
    assert not list(tmp_path.glob("out*"))
    assert "UPPER" in node.refused("commit", "new", "UPPER")
    assert "FROM" in node.refused("commit", "-c", "FROM scratch", "new", "made")
    assert "ONBUILD" in node.refused("commit", "-c", "onbuild", "new", "made")
    assert "no such sandbox" in node.refused("commit", "nothing")
    assert "maybe" in node.refused("commit", "--pause", "maybe", "new")
    assert [image.name for image in node.client.images()] == ["tiny:latest"]
    assert not list(node.home.run.glob("*-*"))


def test_a_sparse_file_with_one_piece_is_packed(node: Node) -> None:
    """It has a hole, and an end that is no whole block."""
    sparse = io.BytesIO()
    with tarfile.open(fileobj=sparse, mode="w", format=tarfile.PAX_FORMAT) as tar:
        member, lead = tarfile.TarInfo("etc/sparse"), b"1\n8388608\n5\n".ljust(512, b"\0")
        numbers = {"major": "1", "minor": "0", "name": "etc/sparse", "realsize": str((8 << 20) + 5)}
        member.pax_headers = {f"GNU.sparse.{name}": value for name, value in numbers.items()}
        member.size = len(lead) + 5
        tar.addfile(member, io.BytesIO(lead + b"piece"))
    layer = node.home.run / "sparse.tar"
    layer.write_bytes(sparse.getvalue())
    library = ImageLibrary(node.home.images)
    parts = library.parts("tiny")
    image = library.compose("sparse", [*parts.layers, layer], parts.document)
    said = subprocess.run(["unsquashfs", "-cat", image.squashfs, "etc/sparse"], capture_output=True, check=True)
    assert said.stdout == bytes(8 << 20) + b"piece"


def test_layers_become_one_tar(node: Node, tmp_path: Path) -> None:
    """What ``export`` sends, of an image and a layer over it."""
    library, layer = ImageLibrary(node.home.images), tmp_path / "layer.tar"
    with tarfile.open(layer, "w") as tar:
        for name, data in (("etc/.wh.hosts", b""), ("etc/more", b"more"), ("opt/put", b"x")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    out = io.BytesIO()
    library.write_tar([*library.parts("tiny").layers, layer], out)
    out.seek(0)
    with tarfile.open(fileobj=out) as tar:
        names = set(tar.getnames())
        assert tar.extractfile("etc/more").read() == b"more"  # type: ignore[union-attr]
    assert {"etc", "etc/more", "opt/put"} <= names and not any(".wh." in name or name == "etc/hosts" for name in names)
