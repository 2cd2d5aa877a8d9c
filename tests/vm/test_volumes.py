"""Volumes on the real Firecracker: they outlive sandboxes, go from one to the next, and sleep with one."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perdure.client.node import NodeClient
from perdure.errors import Conflict
from perdure.execution.sandboxes import volumes
from perdure.model import ExecSpec, Mount, MountKind, SandboxInfo, SandboxSpec

pytestmark = pytest.mark.vm
IMAGE = "perdure-test"
Fcrun = Callable[..., "subprocess.CompletedProcess[str]"]
Start = Callable[..., SandboxInfo]


@pytest.fixture
def volume(client: NodeClient) -> Iterator[str]:
    """A new volume; it and all others are removed after the test."""
    yield client.volumes.create("data", size_mib=64).name
    for info in client.list():
        client.remove(info.id, force=True)
    for each in client.volumes.list():
        client.volumes.remove(each.name)


def sh(client: NodeClient, ref: str, words: str) -> tuple[int, str]:
    status, out, err = client.run(ref, ExecSpec(command=["sh", "-c", words]))
    return status, (out + err).decode()


def test_a_volume_outlives_its_sandbox(fcrun: Fcrun, client: NodeClient, volume: str) -> None:
    done = fcrun(
        "run",
        "--rm",
        "-v",
        "data:/some/new/place",
        IMAGE,
        "sh",
        "-c",
        "ls -A /some/new/place; echo kept >/some/new/place/file",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert volumes._is_clean(volumes.Path(client.volumes.get(volume).path))  # as it was frozen at the end
    done = fcrun(
        "run",
        "--rm",
        "-v",
        "data:/v:ro",
        IMAGE,
        "sh",
        "-c",
        "cat /v/file; echo x >/v/file; mount -o remount,rw /v; dd if=/dev/zero of=/dev/vdc bs=4096 count=1",
    )
    assert done.stdout == "kept\n"
    assert "Read-only file system" in done.stderr
    done = fcrun("run", "--rm", "-v", "data:/v", IMAGE, "cat", "/v/file")
    assert done.stdout == "kept\n"


def test_it_sleeps_with_its_sandbox(start: Start, client: NodeClient, volume: str) -> None:
    """It is kept for it, goes on with it, and is not there for a guest that takes it for what it was before."""
    data = Mount(source=volume, target="/v")
    one = start("sleep", "infinity", mounts=[data, Mount(kind=MountKind.TMPFS, target="/scratch")], name="one").id
    assert sh(client, one, "echo first >/v/file; echo t >/scratch/t; cat /v/file") == (0, "first\n")
    with pytest.raises(Conflict, match="no snapshot holds"):
        client.checkpoint(one)
    client.suspend(one)
    two = client.create(SandboxSpec(image=IMAGE, command=["true"], mounts=[data])).id
    with pytest.raises(Conflict, match="attached to sandbox one"):
        client.start(two)
    client.resume(one)
    assert sh(client, one, "cat /v/file /scratch/t; echo second >>/v/file; sync") == (0, "first\nt\n")
    first = client.snapshots(one)[0].digest
    client.suspend(one)
    with pytest.raises(Conflict, match="has changed since"):
        client.resume(one, snapshot=first)
    client.resume(one)
    client.kill(one)
    with pytest.raises(Conflict, match="has changed since"):
        client.resume(one)
    client.start(one)
    assert sh(client, one, "cat /v/file") == (0, "first\nsecond\n")


def test_files_of_one_that_has_ended(fcrun: Fcrun, client: NodeClient, tmp_path: Path) -> None:
    """Out of it, as long as it is there; into one that has not started, what its main process finds."""
    (tmp_path / "f").write_text("put in")
    assert (
        fcrun(
            "create",
            "--name",
            "box",
            "-v",
            f"{tmp_path}:/copied:ro",
            IMAGE,
            "sh",
            "-c",
            "cat /etc/f /copied/f; >/copied/x",
        ).returncode
        == 0
    )
    assert fcrun("cp", str(tmp_path / "f"), "box:/etc").returncode == 0
    done = fcrun("start", "-a", "box")
    assert "put input in" in done.stdout and "Read-only" in done.stderr
    done = fcrun("cp", "box:/etc/f", str(tmp_path / "back"))
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "back").read_text() == "put in"


def test_an_empty_volume_gets_what_the_image_has(start: Start, client: NodeClient, volume: str) -> None:
    one = start("sleep", "infinity", mounts=[Mount(source=volume, target="/etc")]).id
    words = "grep -c ^root: /etc/passwd; stat -c %a:%u:%g /etc /etc/group; grep -o ' /etc ext4' /proc/mounts"
    status, said = sh(client, one, words)
    assert (status, said.split()) == (0, ["1", "755:0:0", "644:0:0", "/etc", "ext4"]), said
    client.suspend(one)
    client.resume(one)  # the host name is written to a volume that was frozen
    assert sh(client, one, "echo x >/etc/new; cat /etc/new") == (0, "x\n")


def test_readers_share_it_and_can_be_forked(start: Start, client: NodeClient, volume: str) -> None:
    done = start("sh", "-c", "echo shared >/v/file", mounts=[Mount(source=volume, target="/v")]).id
    client.wait(done)
    reads = Mount(source=volume, target="/v", read_only=True)
    one, two = (start("sleep", "infinity", mounts=[reads]).id for _ in range(2))
    (fork,) = client.fork(one)
    for ref in (one, two, fork.id):
        assert sh(client, ref, "cat /v/file") == (0, "shared\n")
    with pytest.raises(Conflict, match="can be written by one sandbox only"):
        client.start(done)
