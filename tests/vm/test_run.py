"""fcrun run, exec, logs and friends on the real Firecracker: Docker's behaviour and exit statuses."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from perdure.client.node import NodeClient
from perdure.errors import CommandNotExecutable, CommandNotFound, NotFound
from perdure.model import ExecSpec, SandboxInfo, SandboxSpec, SandboxState

pytestmark = pytest.mark.vm
IMAGE = "perdure-test"
Fcrun = Callable[..., "subprocess.CompletedProcess[str]"]
Start = Callable[..., SandboxInfo]


def test_run_passes_output_and_status_through(fcrun: Fcrun, client: NodeClient) -> None:
    done = fcrun("run", "--name", "one", IMAGE, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    info = client.get("one")
    assert (info.state, info.exit_status, info.cause) == (SandboxState.EXITED, 7, "exit")
    logs = fcrun("logs", "one")
    assert (logs.stdout, logs.stderr) == ("out\n", "err\n")
    stamped = fcrun("logs", "-t", "one").stdout
    assert stamped.endswith("Z out\n")
    assert stamped.startswith("20")


def test_rm_leaves_nothing(fcrun: Fcrun, client: NodeClient) -> None:
    assert fcrun("run", "--rm", IMAGE, "true").returncode == 0
    assert client.list() == []


@pytest.mark.parametrize(
    ("argv", "status", "words"),
    [
        (["no-such-program"], 127, "no-such-program"),
        (["/etc/passwd"], 126, "/etc/passwd"),
        (["/etc"], 126, "/etc"),
    ],
)
def test_what_cannot_be_run(fcrun: Fcrun, argv: list[str], status: int, words: str) -> None:
    done = fcrun("run", "--rm", IMAGE, *argv)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith("fcrun: ")
    assert words in done.stderr


def test_stdin_is_piped_to_its_end(fcrun: Fcrun) -> None:
    text = "".join(f"line {number}\n" for number in range(5000))
    done = fcrun("run", "--rm", "-i", IMAGE, "cat", stdin=text)
    assert (done.returncode, done.stdout) == (0, text)


def test_the_process_gets_what_the_options_say(fcrun: Fcrun, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("FILE=1\n")
    done = fcrun(
        *("run", "--rm", "-e", "A=x y", "--env-file", str(tmp_path / "env"), "-w", "/usr", "-u", "daemon"),
        *("-h", "somewhere", "-m", "256m", "--cpus", "2", IMAGE, "sh", "-c"),
        'echo "$A/$FILE/$PWD/$(id -un)/$(hostname)/$(nproc)/$PERDURE_URL"',
    )
    assert done.stdout == "x y/1//usr/daemon/somewhere/2/http://127.0.0.1:4750\n", done.stderr


def test_detached_then_exec_logs_stop(fcrun: Fcrun, client: NodeClient) -> None:
    script = "trap 'echo bye; exit 3' TERM; echo up; sleep infinity & wait"
    done = fcrun("run", "-d", "--name", "svc", IMAGE, "sh", "-c", script)
    ref = done.stdout.strip()
    assert len(ref) == 12, done.stderr
    assert fcrun("ps", "-q").stdout.split() == [ref]
    assert fcrun("exec", "svc", "sh", "-c", "echo in; exit 5").returncode == 5
    assert fcrun("exec", "-i", "svc", "cat", stdin="through").stdout == "through"
    assert fcrun("exec", "svc", "nope").returncode == 127
    assert fcrun("stop", "svc").stdout == "svc\n"
    assert fcrun("logs", "svc").stdout == "up\nbye\n"
    assert fcrun("wait", "svc").stdout == "3\n"
    info = client.get("svc")
    assert (info.exit_status, info.cause) == (3, "stopped")
    assert fcrun("rm", "svc").returncode == 0
    with pytest.raises(NotFound):
        client.get(ref)


def test_kill_and_signals(start: Start, client: NodeClient, fcrun: Fcrun) -> None:
    ref = start("sh", "-c", "trap 'echo usr1' USR1; echo up; sleep infinity & while :; do wait; done").id
    follow = client.logs(ref, follow=True)
    assert next(follow).data == b"up\n"
    client.kill(ref, signal="USR1")
    assert next(follow).data == b"usr1\n"
    client.kill(ref)
    assert list(follow) == []
    info = client.get(ref)
    assert (info.state, info.exit_status, info.cause) == (SandboxState.EXITED, 137, "killed")
    assert fcrun("kill", ref).returncode == 125


def test_an_exited_sandbox_starts_again_on_its_files(start: Start, client: NodeClient) -> None:
    ref = start("sh", "-c", "cat /data 2>/dev/null; date +%N >> /data").id
    assert client.wait(ref).exit_status == 0
    client.start(ref)
    assert client.wait(ref).exit_status == 0
    assert sum(record.data.count(b"\n") for record in client.logs(ref)) == 1


def test_typed_errors_reach_python(start: Start, client: NodeClient) -> None:
    ref = start("sleep", "1000").id
    with pytest.raises(CommandNotFound):
        client.run(ref, ExecSpec(command=["nope"]))
    with pytest.raises(CommandNotExecutable):
        client.run(ref, ExecSpec(command=["/etc/passwd"]))
    assert client.run(ref, ExecSpec(command=["cat"], stdin=True), b"x" * 1_000_000) == (0, b"x" * 1_000_000, b"")


def test_much_output_is_whole_and_in_order(start: Start, client: NodeClient) -> None:
    ref = start("seq", "1", "200000").id
    data = b"".join(record.data for record in client.logs(ref, follow=True))
    assert data == b"".join(b"%d\n" % number for number in range(1, 200001))


def test_files_put_in_before_the_start_are_there(client: NodeClient) -> None:
    info = client.create(SandboxSpec(image=IMAGE, command=["cat", "/opt/agent/main.txt"]))
    client.put_files(info.id, {"/opt/agent/main.txt": b"hello\n"})
    client.start(info.id)
    assert client.wait(info.id).exit_status == 0
    assert [record.data for record in client.logs(info.id)] == [b"hello\n"]


def test_cp_both_ways(start: Start, fcrun: Fcrun, tmp_path: Path) -> None:
    ref = start("sleep", "1000").id
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    (tree / "file").write_text("content")
    (tree / "deep" / "run").write_bytes(os.urandom(300_000))
    (tree / "deep" / "run").chmod(0o755)
    (tree / "link").symlink_to("file")
    assert fcrun("cp", str(tree), f"{ref}:/srv").returncode == 0
    assert fcrun("exec", ref, "cat", "/srv/tree/link").stdout == "content"
    assert fcrun("cp", f"{ref}:/srv/tree", str(tmp_path / "back")).returncode == 0
    back = tmp_path / "back"
    assert (back / "deep" / "run").read_bytes() == (tree / "deep" / "run").read_bytes()
    assert os.access(back / "deep" / "run", os.X_OK)
    assert (back / "link").readlink() == Path("file")
    assert fcrun("cp", str(tree / "file"), f"{ref}:/srv/renamed").returncode == 0
    assert fcrun("exec", ref, "cat", "/srv/renamed").stdout == "content"
    assert fcrun("cp", f"{ref}:/srv/renamed", str(tmp_path)).returncode == 0
    assert (tmp_path / "renamed").read_text() == "content"
    assert fcrun("cp", f"{ref}:/nope", str(tmp_path)).returncode == 125
    assert fcrun("cp", str(tree), f"{ref}:/no/such/folder").returncode == 125


def test_cp_speaks_tar_streams(start: Start, client: NodeClient) -> None:
    ref = start("sleep", "1000").id
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        member = tarfile.TarInfo("from-tar")
        member.size, member.mode = 3, 0o600
        tar.addfile(member, io.BytesIO(b"abc"))
    client.put_archive(ref, "/tmp", packed.getvalue())
    with tarfile.open(fileobj=io.BytesIO(b"".join(client.get_archive(ref, "/tmp/from-tar")))) as tar:
        (member,) = tar.getmembers()
        assert (member.name, member.mode, member.uid) == ("from-tar", 0o600, 0)
        source = tar.extractfile(member)
        assert source is not None
        assert source.read() == b"abc"


def test_ps_and_inspect(start: Start, fcrun: Fcrun) -> None:
    info = start("sleep", "1000", name="shown", labels={"tier": "test"})
    table = fcrun("ps").stdout
    assert table.splitlines()[0].split()[:2] == ["SANDBOX", "ID"]
    assert "Up " in table
    assert fcrun("ps", "--format", "{{.ID}} {{.Names}}").stdout == f"{info.id} shown\n"
    assert fcrun("ps", "-q", "--filter", "label=tier=test").stdout.strip() == info.id
    assert fcrun("ps", "-q", "--filter", "label=tier=other").stdout == ""
    assert fcrun("inspect", "-f", "{{.state}} {{.spec.image}}", "shown").stdout == f"running {IMAGE}\n"
    assert '"firecracker_pid"' in fcrun("inspect", "shown").stdout
    # its memory is the template's file, which all of its kind share in the page cache
    assert fcrun("inspect", "-f", "{{.machine.backend}}", "shown").stdout == "file\n"
