"""Sandboxes that are paused, measured, looked into and taken out, on the real Firecracker."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Callable
from typing import Any

import pytest

from perdure.client.node import NodeClient, ensure_running
from perdure.errors import Conflict
from perdure.host.paths import Home
from perdure.model import ExecSpec, SandboxInfo, SandboxSpec, SandboxState

pytestmark = pytest.mark.vm
IMAGE = "perdure-test"
Fcrun = Callable[..., "subprocess.CompletedProcess[str]"]
Start = Callable[..., SandboxInfo]
WRITES = """
set -e
mkdir -p /data/deep /data/gone; echo hello > /data/deep/file; ln /data/deep/file /data/hard; ln -s deep/file /data/soft
rm /etc/debian_version; rm -r /etc/skel; mkdir /etc/skel; echo mine > /etc/skel/mine; chmod 700 /opt
echo more >> /etc/passwd; touch /etc/new; rm /etc/new; truncate -s 40M /data/sparse; echo end >> /data/sparse
rmdir /data/gone; echo ready; exec sleep 1000
"""
CHANGES = [
    "A /data",
    "A /data/deep",
    "A /data/deep/file",
    "A /data/hard",
    "A /data/soft",
    "A /data/sparse",
    "C /etc",
    "D /etc/debian_version",
    "C /etc/passwd",
    "C /etc/skel",
    "A /etc/skel/mine",
    "C /opt",
]


def exported(fcrun: Fcrun, client: NodeClient, ref: str) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(b"".join(client.export(ref)))) as tar:
        members = {member.name: member for member in tar}
        file = tar.extractfile("data/hard")
        assert file is not None and file.read() == b"hello\n"
        assert not any(member.name == "etc/machine-id" and member.size > 1 for member in members.values())
        sparse = tar.extractfile("data/sparse")
        assert sparse is not None and (sparse.seek(40 << 20), sparse.read()) == (40 << 20, b"end\n")
    return members


def test_what_changed_and_all_of_it_in_every_state(fcrun: Fcrun, client: NodeClient, start: Start, home: Home) -> None:
    ref = start("sh", "-c", WRITES, name="box").id
    assert next(iter(client.logs(ref, follow=True))).data == b"ready\n"
    changes = [line for line in fcrun("diff", "box").stdout.splitlines() if "/skel/." not in line]
    assert changes == CHANGES
    hidden = [line for line in fcrun("diff", "box").stdout.splitlines() if "/skel/." in line]
    assert hidden and all(line.startswith("D /etc/skel/.") for line in hidden)
    members = exported(fcrun, client, "box")
    assert members["data/sparse"].size == (40 << 20) + 4 and members["data/sparse"].issparse()
    assert members["data/soft"].linkname == "deep/file" and members["opt"].mode == 0o700
    assert {members["data/hard"].islnk(), members["data/deep/file"].islnk()} == {True, False}
    assert members["proc"].isdir() and not any(name.startswith("proc/") for name in members)
    assert "etc/debian_version" not in members and "usr/bin/python3" in members
    whole = set(members)

    done = fcrun("commit", "-m", "words", "-c", "ENV A=b", "-c", "CMD cat /data/hard", "box", "committed:v1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == {image.name: image.digest for image in client.images()}["committed:v1"]
    seen = fcrun("run", "--rm", "committed:v1")
    assert (seen.returncode, seen.stdout) == (0, "hello\n"), seen.stderr
    look = "echo $A; ls -A /etc/skel; stat -c '%s %h' /data/sparse /data/hard; tail -n1 /etc/passwd; ls /etc/debian*"
    seen = fcrun("run", "--rm", "committed:v1", "sh", "-c", look)
    assert seen.stdout.splitlines() == ["b", "mine", f"{(40 << 20) + 4} 1", "6 2", "more"], seen.stderr
    assert client.run(ref, ExecSpec(command=["true"]))[0] == 0  # it was thawed

    client.pause(ref)
    assert [line for line in fcrun("diff", "box").stdout.splitlines() if "/skel/." not in line] == CHANGES
    assert client.get(ref).state is SandboxState.PAUSED
    client.suspend(ref)  # as it is
    assert [line for line in fcrun("diff", "box").stdout.splitlines() if "/skel/." not in line] == CHANGES
    assert set(exported(fcrun, client, "box")) == whole
    (home.sandboxes / ref / "disk").unlink()  # then it is read from the snapshot
    assert [line for line in fcrun("diff", "box").stdout.splitlines() if "/skel/." not in line] == CHANGES
    client.resume(ref)
    client.kill(ref)
    assert client.get(ref).state is SandboxState.EXITED
    assert [line for line in fcrun("diff", "box").stdout.splitlines() if "/skel/." not in line] == CHANGES
    client.commit(ref, "committed:v2")  # of one that has no machine
    assert fcrun("run", "--rm", "committed:v2", "cat", "/data/soft").stdout == "hello\n"
    assert not list(home.run.glob("reading-*")) and not list(home.run.glob("upload-*"))
    for name in ("committed:v1", "committed:v2"):
        client.remove_image(name)

    made = client.create(SandboxSpec(image=IMAGE, command=["true"], name="made")).id
    assert client.changes(made) == []
    client.put_files(made, {"/opt/put/in": b"before"})
    assert fcrun("diff", "made").stdout.splitlines() == ["C /opt", "A /opt/put", "A /opt/put/in"]


def test_paused_it_stands_still_and_goes_on(
    fcrun: Fcrun, client: NodeClient, start: Start, home: Home, eventually: Callable[[Callable[[], object]], None]
) -> None:
    ref = start("sh", "-c", "while :; do echo x; sleep 0.3; done", name="busy").id
    assert next(iter(client.logs(ref, follow=True)))
    assert fcrun("pause", "busy").stdout == "busy\n"
    assert fcrun("ps", "--format", "{{.Status}}").stdout.endswith("(Paused)\n")
    said = len(list(client.logs(ref)))
    refused = fcrun("exec", "busy", "true")
    assert refused.returncode == 125 and "is paused" in refused.stderr and "fcrun unpause busy" in refused.stderr
    again = fcrun("pause", "busy")
    assert again.returncode == 125 and "paused already" in again.stderr
    with pytest.raises(Conflict, match="paused"):
        client.checkpoint(ref)
    assert [one.command for one in client.top(ref) if one.name == "sh"]  # guestd answers, the workload stays frozen
    (usage,) = client.stats([ref])
    assert (usage.state, usage.host_bytes > 0) == (SandboxState.PAUSED, True)
    client.shutdown()
    ensure_running(home)
    assert client.get(ref).state is SandboxState.PAUSED
    assert len(list(client.logs(ref))) == said
    assert fcrun("unpause", "busy").stdout == "busy\n"
    eventually(lambda: len(list(client.logs(ref))) > said)
    assert client.run(ref, ExecSpec(command=["true"]))[0] == 0
    client.pause(ref)
    assert client.kill(ref).exit_status == 137

    client.start(ref)
    client.pause(ref)
    client.shutdown()
    ensure_running(home)
    assert client.stop(ref, timeout_s=0.1).state is SandboxState.EXITED  # though this node never met its guest
    client.start(ref)
    client.pause(ref)
    client.remove(ref, force=True)


def test_what_runs_and_what_it_uses(fcrun: Fcrun, client: NodeClient, start: Start) -> None:
    burner = (
        "import os,time\nopen('/f','wb').write(os.urandom(3<<20)); os.sync()\nprint('up',flush=True)\nwhile 1: pass"
    )
    ref = start("python3", "-c", burner, name="burn").id
    assert next(iter(client.logs(ref, follow=True))).data == b"up\n"
    client.exec_detached(ref, ExecSpec(command=["sleep", "1000"], user="daemon"))
    lines = fcrun("top", "burn").stdout.splitlines()
    assert lines[0].split() == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    rows = {line.split()[0]: line for line in lines[1:]}
    assert len(lines) == 3 and set(rows) == {"root", "daemon"}, lines
    assert "python3 -c import os" in rows["root"] and rows["daemon"].endswith("sleep 1000")
    assert int(rows["root"].split()[3]) > 10 and rows["root"].split()[2] == "1"
    assert fcrun("top", "burn", "-o", "user,comm").stdout.split() == [
        *("USER", "COMMAND", "root", "python3", "daemon", "sleep")
    ]

    first = {one.id: one for one in client.stats()}[ref]
    table = fcrun("stats", "--no-stream").stdout.splitlines()
    assert table[0].split("   ")[0] == "SANDBOX ID" and len(table) == 2
    row: dict[str, Any] = json.loads(fcrun("stats", "--no-stream", "--format", "json", "burn").stdout)
    assert 20 < float(row["CPUPerc"].rstrip("%")) < 250 and 2 <= int(row["PIDs"]) < 10, row
    (now,) = client.stats(["burn"])
    assert now.cpu_s > first.cpu_s > 0
    assert now.memory_limit_bytes == 512 << 20 and 4 << 20 < now.memory_bytes < 256 << 20
    assert now.written_bytes >= 3 << 20 and now.read_bytes > 1 << 20 and now.host_bytes > 16 << 20

    client.suspend(ref)
    (asleep,) = client.stats()
    assert (asleep.cpu_s, asleep.memory_bytes, asleep.threads) == (0, 0, 0) and asleep.stored_bytes > 1 << 20
    refused = fcrun("top", "burn")
    assert refused.returncode == 125 and "suspended" in refused.stderr
    client.remove(ref)
    assert fcrun("stats", "--no-stream", "--format", "{{.Name}}").stdout == ""
