"""``fcrun volume`` and ``-v`` against a real node; nothing here needs a machine."""

from __future__ import annotations

import json
import os
import re
import signal
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from perdure.client.node import NodeClient, ensure_running
from perdure.errors import Conflict, InvalidValue, NotFound, ProtocolError
from perdure.execution.sandboxes.record import Folder, KeptSnapshot, Record
from perdure.host.paths import Home
from perdure.model import Mount, MountKind, SandboxSpec, SandboxState, SnapshotInfo
from perdure.testing.commands import Fcrun
from perdure.testing.tinynodes import new_home, tiny_node

HEX = re.compile(r"[0-9a-f]{64}")


@dataclass
class Node:
    """A running fcrund with the image ``tiny``."""

    home: Home
    client: NodeClient
    fcrun: Fcrun
    image_digest: str

    def again(self) -> None:
        """The daemon is killed, and another one started."""
        os.kill(int(self.client.system()["pid"]), signal.SIGKILL)
        ensure_running(self.home)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    home = new_home(tmp_path)
    with tiny_node(home) as client:
        yield Node(home, client, Fcrun(home), client.images()[0].digest)


def sleeping(
    node: Node, sandbox_id: str, mounts: list[Mount], state: SandboxState, marks: dict[str, list[int]]
) -> None:
    """The record of a sandbox that holds volumes, as a former node left it."""
    digest = "sha256:" + "e" * 64
    info = SnapshotInfo(digest=digest, sandbox_id=sandbox_id, created=1.0)
    folder = Folder(node.home.sandboxes / sandbox_id)
    folder.root.mkdir()
    folder.save(
        Record(
            id=sandbox_id,
            name=f"box-{sandbox_id[:2]}",
            spec=SandboxSpec(image="tiny", mounts=mounts),
            image_digest=node.image_digest,
            created=1.0,
            state=state,
            parent=digest,
            snapshots=[KeptSnapshot(info=info, volumes=marks)],
        )
    )


def test_made_listed_shown_and_removed(node: Node) -> None:
    fcrun = node.fcrun
    assert fcrun.said("volume", "create", "--label", "of=me", "--size", "64m", "data") == "data\n"
    assert fcrun.said("volume", "create", "data") == "data\n"  # as docker: it is there
    assert fcrun.said("volume", "create", "-o", "size=32m", "small") == "small\n"
    nameless = fcrun.said("volume", "create").strip()
    assert HEX.fullmatch(nameless)
    lines = fcrun.said("volume", "ls").splitlines()
    assert lines[0].split() == ["DRIVER", "VOLUME", "NAME"]
    assert sorted(line.split()[1] for line in lines[1:]) == sorted([nameless, "data", "small"])
    assert fcrun.said("volume", "ls", "-q", "--filter", "label=of=me") == "data\n"
    assert fcrun.said("volume", "ls", "-q", "--filter", "name=mal", "-f", "dangling=true") == "small\n"
    shown = fcrun.said("volume", "ls", "--filter", "name=data", "--format", "{{.Name}} {{.Limit}} {{.Labels}}")
    assert shown == "data 67.1MB of=me\n"
    (found,) = json.loads(fcrun.said("volume", "inspect", "data"))
    assert (found["Name"], found["Driver"], found["Labels"], found["Scope"]) == ("data", "local", {"of": "me"}, "local")
    file = Path(found["Mountpoint"])
    assert file.stat().st_size == 64 << 20 and file.stat().st_blocks * 512 < 8 << 20
    assert fcrun("volume", "rm", "data", "small") == (0, "data\nsmall\n", "")
    status, _, said = fcrun("volume", "rm", "data")
    assert status == 125 and "no such volume: data" in said
    assert fcrun("volume", "rm", "-f", "data")[0] == 0
    assert not file.exists()


REFUSED: list[tuple[list[str], str]] = [
    (["volume", "create", "../x"], "invalid volume name"),
    (["volume", "create", "--size", "1m", "x"], "MiB"),
    (["volume", "create", "-o", "type=nfs", "x"], "unknown option"),
    (["volume", "ls", "--filter", "color=red"], "no filter of volumes"),
    (["create", "-v", "x", "tiny"], "must be absolute"),
    (["create", "-v", "data:/a:wo", "tiny"], "unknown option 'wo'"),
    (["create", "-v", "/no/such/folder:/a", "tiny"], "no such file or folder"),
    (["create", "-v", "data:/", "tiny"], "cannot be at /"),
    (["create", "-v", "data:/a", "-v", "other:/a/", "tiny"], "duplicate mount point: /a"),
    (["create", "-v", "data:/a", "-v", "data:/b:ro", "tiny"], "once read-only"),
    (["create", "--mount", "type=nfs,dst=/a", "tiny"], "unknown type"),
    (["create", "--mount", "src=x", "tiny"], "needs dst=PATH"),
    (["create", "--tmpfs", "/a:size=x", "tiny"], "unknown option 'size=x'"),
    (["create", *(part for number in range(9) for part in ("-v", f"v{number}:/v{number}")), "tiny"], "at most 8"),
    (["run", "--template", "t", "-v", "data:/a"], "excludes --volume"),
]


def test_what_is_refused(node: Node) -> None:
    for argv, words in REFUSED:
        status, _, said = node.fcrun(*argv)
        assert status == 125 and words in said, said
    assert node.client.list() == []


def test_what_is_not_created_leaves_no_volume_without_a_name(node: Node) -> None:
    """But for one that was there, of a sandbox that is gone: whoever names it knows of it."""
    fcrun, client = node.fcrun, node.client
    fcrun.said("create", "--name", "box", "-v", "/v", "tiny", "true")
    (old,) = (volume.name for volume in client.volumes.list())
    fcrun.said("rm", "box")
    fcrun.said("create", "--name", "box", "tiny", "true")
    status, _, said = fcrun("create", "--name", "box", "-v", "/v", "-v", f"{old}:/w", "tiny", "true")
    assert status == 125 and "name box is taken" in said
    with pytest.raises(InvalidValue, match="invalid volume name"):
        mounts = [Mount(kind=MountKind.VOLUME, source=name, target=f"/m{len(name)}") for name in ("", "../x")]
        client.create(SandboxSpec(image="tiny", mounts=mounts))
    assert [volume.name for volume in client.volumes.list()] == [old]


def test_it_belongs_to_the_sandboxes_that_name_it(node: Node) -> None:
    """Made where there is none; kept while any has it, in whatever state; without a name it goes with ``rm -v``."""
    fcrun, client = node.fcrun, node.client
    one = fcrun.said("create", "-v", "data:/v", "-v", "/nameless", "--tmpfs", "/t:size=1m", "tiny", "true").strip()
    volumes = {volume.name: volume for volume in client.volumes.list()}
    (nameless,) = volumes.keys() - {"data"}
    assert HEX.fullmatch(nameless) and volumes[nameless].anonymous and not volumes["data"].anonymous
    assert [(user.id, user.attached) for user in volumes["data"].users] == [(one, False)]
    assert [mount.target for mount in client.get(one).spec.mounts] == ["/v", "/nameless", "/t"]
    shown = fcrun.said("inspect", "-f", "{{range .Mounts}}{{.Type}} {{.Destination}} {{.RW}};{{end}}", one)
    assert shown == "volume /v true;volume /nameless true;tmpfs /t true;\n"
    two = fcrun.said("create", "--mount", "type=volume,source=data,destination=/x,readonly", "tiny", "true").strip()
    status, _, said = fcrun("volume", "rm", "data")
    assert status == 125 and one in said and two in said
    assert fcrun.said("volume", "prune", "--all", "--force") == "Total reclaimed space: 0B\n"
    client.remove(two)
    node.again()
    with pytest.raises(Conflict, match="in use"):
        client.volumes.remove("data")
    assert fcrun("rm", "-v", one)[0] == 0
    assert [volume.name for volume in client.volumes.list()] == ["data"]
    three = fcrun.said("create", "-v", "/nameless", "tiny", "true").strip()
    client.remove(three)
    assert len(client.volumes.list()) == 2
    (use,) = [use for use in client.disk_use() if use.kind == "volumes"]
    assert (use.total, use.active) == (2, 0) and use.size_bytes == use.reclaimable_bytes > 0
    assert "Deleted Volumes" in fcrun.said("volume", "prune", "-f")
    assert [volume.name for volume in client.volumes.list()] == ["data"]


def test_a_folder_of_this_machine_is_copied_in(node: Node, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub/file").write_text("x")
    one = node.fcrun.said("create", "-v", f"{source}:/a/b:ro", "tiny", "true").strip()
    (mount,) = node.client.get(one).spec.mounts
    assert (mount.kind, mount.source, mount.target, mount.read_only) == ("folder", str(source), "/a/b", True)
    (kept,) = (node.home.sandboxes / one / "archives").glob("*.tar")
    with tarfile.open(kept) as tar:
        assert sorted(tar.getnames()) == ["a/b", "a/b/sub", "a/b/sub/file"]


def test_files_are_put_into_one_that_has_not_started(node: Node, tmp_path: Path) -> None:
    """By docker's rules, which ask what is there: in the image, in what was put in before, at the mounts."""
    fcrun = node.fcrun
    box = fcrun.said("create", "-v", "data:/v", "--name", "box", "tiny", "true").strip()
    (tmp_path / "f").write_text("x")
    (tmp_path / "d/sub").mkdir(parents=True)
    f, d = str(tmp_path / "f"), str(tmp_path / "d")
    for source, target in (
        (f, "box:/"),
        (f, "box:/new"),
        (f, "box:/v"),
        (d, "box:/d"),
        (f, "box:/d/sub"),
        (f, "box:new"),
    ):
        assert fcrun("cp", source, target) == (0, "", "")
    kept = sorted((node.home.sandboxes / box / "archives").glob("*.tar"))
    landed = []
    for path in kept:
        with tarfile.open(path) as tar:
            landed.append((path.with_suffix(".path").read_text(), tar.getnames()))
    assert landed == [
        ("/", ["f"]), ("/", ["new"]), ("/v", ["f"]), ("/", ["d", "d/sub"]), ("/d/sub", ["f"]), ("/", ["new"]),
    ]  # fmt: skip
    for source, target, words in (
        (f, "box:/no/x", "No such file"),
        (f, "box:/no/", "no such folder"),
        (d, "box:/new", "cannot copy directory"),
    ):
        status, _, said = fcrun("cp", source, target)
        assert status == 125 and words in said, said


def test_who_has_it_is_asked_before_a_machine_is_made(node: Node) -> None:
    """A suspended sandbox keeps its volumes, over restarts of the node; readers share one."""
    client = node.client
    for name in ("written", "read"):
        client.volumes.create(name, size_mib=16)
    node.client.shutdown()
    written, read = Mount(source="written", target="/w"), Mount(source="read", target="/r", read_only=True)
    sleeping(node, "aa" * 6, [written, read], SandboxState.SUSPENDED, {})
    ensure_running(node.home)

    def start(*mounts: Mount) -> None:
        client.start(client.create(SandboxSpec(image="tiny", command=["/bin/true"], mounts=list(mounts))).id)

    with pytest.raises(Conflict, match="attached to sandbox box-aa"):
        start(written)
    with pytest.raises(Conflict, match="which writes it"):
        start(Mount(source="written", target="/w", read_only=True))
    with pytest.raises(Conflict, match="written by one sandbox only"):
        start(Mount(source="read", target="/w"))
    assert {info.state for info in client.list()} == {SandboxState.CREATED, SandboxState.SUSPENDED}


def test_a_guest_does_not_go_on_over_a_volume_that_has_changed(node: Node) -> None:
    client = node.client
    path = Path(client.volumes.create("data", size_mib=16).path)
    facts = path.stat()
    node.client.shutdown()
    mark = [facts.st_size, facts.st_ino, facts.st_mtime_ns]
    sleeping(node, "aa" * 6, [Mount(source="data", target="/v")], SandboxState.SUSPENDED, {"data": mark})
    ensure_running(node.home)
    with pytest.raises(NotFound, match="snapshot"):  # the volume is as it was: what is missing is the snapshot
        client.resume("box-aa")
    with path.open("r+b") as file:
        file.write(b"x")
    with pytest.raises(Conflict, match="volume data has changed since sandbox box-aa was suspended"):
        client.resume("box-aa")
    path.unlink()
    with pytest.raises(ProtocolError, match="lost its data"):
        client.resume("box-aa")


def test_one_that_was_not_closed_is_not_read(node: Node) -> None:
    """ext4 would have to be repaired, which a reader cannot do."""
    path = Path(node.client.volumes.create("data", size_mib=16).path)
    with path.open("r+b") as file:  # the flag that mount(8) sets and a clean end takes back
        file.seek(1024 + 96)
        flags = file.read(1)[0]
        file.seek(1024 + 96)
        file.write(bytes([flags | 4]))
    reads = Mount(source="data", target="/v", read_only=True)
    one = node.client.create(SandboxSpec(image="tiny", command=["/bin/true"], mounts=[reads])).id
    with pytest.raises(Conflict, match="was not closed"):
        node.client.start(one)


def test_half_made_and_half_deleted_ones_are_swept(node: Node) -> None:
    node.client.volumes.create("data", size_mib=16)
    left = [node.home.volumes / name for name in (".data.00000000.new", ".other.00000000.gone")]
    for path in left:
        path.mkdir()
        (path / "data").write_bytes(b"x")
    node.again()
    assert [volume.name for volume in node.client.volumes.list()] == ["data"]
    assert not any(path.exists() for path in left)


def test_a_damaged_record_is_told(node: Node) -> None:
    node.client.volumes.create("data", size_mib=16)
    (node.home.volumes / "data/volume.json").write_text("{")
    status, _, said = node.fcrun("volume", "inspect", "data")
    assert status == 125 and "does not read" in said
    assert node.client.volumes.list() == []


def test_a_template_writes_no_volume(node: Node) -> None:
    status, _, said = node.fcrun("template", "build", "-v", "data:/v", "tiny", "true")
    assert status == 125 and "cannot write volume data" in said
    assert node.client.volumes.list() == []


def test_specs_that_no_command_line_sends(node: Node) -> None:
    for mount in (Mount(target="relative"), Mount(target="/a\0b"), Mount(kind=MountKind.TMPFS, target="/", options=[])):
        with pytest.raises(InvalidValue):
            node.client.create(SandboxSpec(image="tiny", command=["/bin/true"], mounts=[mount]))
    with pytest.raises(NotFound):
        node.client.volumes.get("a/../b")
    assert node.client.volumes.list() == []
