"""How a sandbox wishes to find its machine: what only a guest shows of it, also after a restart, and in forks."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from perdure.client.node import NodeClient

pytestmark = pytest.mark.vm
IMAGE = "perdure-test"
Fcrun = Callable[..., "subprocess.CompletedProcess[str]"]
WRITES = (
    "for at in /x /etc/x /tmp/x /run/x /dev/shm/x /scratch/x /var/log/x; do touch $at 2>/dev/null && echo $at; done"
)
LOOKS = (
    "ulimit -Sn; ulimit -Hn; ulimit -c; id -G; grep -c 10.9.8.7 /etc/hosts; getent hosts db six; "
    "df -B1 --output=size /dev/shm | tail -1 | tr -d ' '; cat /proc/sys/net/core/somaxconn /proc/sys/vm/swappiness"
)
TOLD = "sleep 1000 & trap 'echo told; exit' USR1"
FOUND = "100\n200\n0\n0 1 4321\n1\n10.9.8.7        db\nfd00::6         six\n8388608\n99\n7\n"
WISHES = [
    *("--ulimit", "nofile=100:200", "--ulimit", "core=0", "--group-add", "daemon", "--group-add", "4321"),
    *(
        "--add-host",
        "db:10.9.8.7",
        "--add-host=six=[fd00::6]",
        "--dns-search",
        "example.org",
        "--shm-size",
        "8m",
        "--init",
    ),
    *("--sysctl", "net.core.somaxconn=99", "--sysctl", "vm/swappiness=7"),
]


def test_a_read_only_root_and_what_is_written_beside_it(fcrun: Fcrun, client: NodeClient, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("brought\n")
    script = f"{WRITES}; cat /in/file; sleep 1000"
    options = ["--read-only", "--tmpfs", "/scratch", "--add-host", "db:10.9.8.7", "-v", f"{tmp_path}:/in"]
    ref = fcrun("run", "-d", "--name", "sealed", *options, IMAGE, "sh", "-c", script).stdout.strip()
    seen = b""
    for record in client.logs(ref, follow=True):
        seen += record.data
        if b"brought" in seen:
            break
    assert seen == b"/dev/shm/x\n/scratch/x\nbrought\n"
    assert fcrun("exec", "sealed", "sh", "-c", WRITES).stdout == "/dev/shm/x\n/scratch/x\n"
    copied = fcrun("cp", str(tmp_path / "file"), "sealed:/usr/file")
    assert copied.returncode != 0 and "Read-only file system" in copied.stderr

    (fork,) = fcrun("fork", "sealed").stdout.split()  # who it is changes, and nothing else may
    look = "cat /etc/hostname; grep 127.0.1.1 /etc/hosts; grep -cw db /etc/hosts; hostname"
    assert fcrun("exec", fork, "sh", "-c", look).stdout == f"{fork}\n127.0.1.1 {fork}\n1\n{fork}\n"
    assert fcrun("exec", fork, "sh", "-c", WRITES).stdout == "/dev/shm/x\n/scratch/x\n"


def test_what_is_for_writing_is_written_below_a_root_that_is_not(
    fcrun: Fcrun, client: NodeClient, tmp_path: Path
) -> None:
    """Folders, volumes of the image (also one that it has not got), and a tmpfs that is mounted by a link."""
    (tmp_path / "file").write_text("brought\n")
    fcrun("create", "--name", "bare", IMAGE, "true")
    assert fcrun("commit", "-c", "VOLUME /var/lib/db /opt", "bare", "declares").returncode == 0
    fcrun("rm", "bare")
    look = (
        "cat /data/file /etc/conf/file; for at in x data/x etc/conf/x etc/x run/x var/run/x tmp/x opt/x var/lib/db/x; "
        "do touch /$at 2>/dev/null && echo $at; done"
    )
    told = "brought\nbrought\ndata/x\nrun/x\nvar/run/x\nopt/x\nvar/lib/db/x\n"
    try:
        options = ["--read-only", "--tmpfs", "/var/run", "-v", f"{tmp_path}:/data", "-v", f"{tmp_path}:/etc/conf:ro"]
        run = fcrun("run", "-d", "--name", "kept", *options, "declares", "sh", "-c", f"{look}; echo; sleep 1000")
        assert run.returncode == 0, run.stderr
        seen = ""
        for record in client.logs("kept", follow=True):
            seen += record.data.decode()
            if seen.endswith("\n\n"):
                break
        assert seen == f"{told}\n"
        (fork,) = fcrun("fork", "kept").stdout.split()
        assert fcrun("exec", fork, "sh", "-c", f"{look}; hostname").stdout == f"{told}{fork}\n"
        fcrun("rm", "-f", fork, "kept")
    finally:
        fcrun("rmi", "declares")


def test_a_root_is_written_in_forks_whatever_is_read_only_in_it(fcrun: Fcrun, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("brought\n")
    fcrun("run", "-d", "--name", "open", "-v", f"{tmp_path}:/etc:ro", IMAGE, "sleep", "1000")
    (fork,) = fcrun("fork", "open").stdout.split()
    look = "cat /etc/file; touch /etc/x 2>/dev/null || echo read-only; touch /x /usr/x && echo written; hostname"
    assert fcrun("exec", fork, "sh", "-c", look).stdout == f"brought\nread-only\nwritten\n{fork}\n"


def test_limits_groups_hosts_and_the_kernels_own(fcrun: Fcrun, client: NodeClient) -> None:
    ref = fcrun(
        "run", "-d", "--name", "fitted", *WISHES, IMAGE, "sh", "-c", f"{TOLD}; {LOOKS}; echo; wait"
    ).stdout.strip()
    seen = ""
    for record in client.logs(ref, follow=True):
        seen += record.data.decode()
        if seen.endswith("\n\n"):
            break
    assert seen == f"{FOUND}\n"
    assert fcrun("exec", "fitted", "sh", "-c", LOOKS).stdout == FOUND
    resolver = ("grep", "-v", "nameserver", "/etc/resolv.conf")
    (fork,) = fcrun("fork", "fitted").stdout.split()
    assert fcrun("exec", fork, "sh", "-c", LOOKS).stdout == FOUND
    assert fcrun("exec", fork, *resolver).stdout == "search example.org\n"
    fcrun("rm", "-f", fork)
    # once more on its files, and on a kernel that has just booted
    assert fcrun("restart", "--signal", "USR1", "--timeout=-1", "fitted").stdout == "fitted\n"
    assert "told\n" in fcrun("logs", "fitted").stdout
    assert fcrun("exec", "fitted", "sh", "-c", LOOKS).stdout == FOUND
    assert fcrun("exec", "fitted", *resolver).stdout == "search example.org\n"
    orphan = "pid=$(sh -c 'true & echo $!'); while [ -e /proc/$pid ]; do :; done; echo gone"
    assert fcrun("exec", "fitted", "sh", "-c", orphan).stdout == "gone\n"  # somebody reaps it


def test_what_people_give_untrusted_code(fcrun: Fcrun) -> None:
    """The line that docker's users have for it, as it is."""
    hardened = [
        *(
            "--rm",
            "--network",
            "none",
            "--memory",
            "512m",
            "--memory-swap",
            "512m",
            "--cpus",
            "1",
            "--pids-limit",
            "20",
        ),
        *("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--tmpfs", "/tmp"),
    ]
    script = (
        "grep -E 'CapEff|NoNewPrivs' /proc/self/status | tr -s '\\t\\n' ' '; touch /tmp/here && echo here; "
        "mount -o remount,rw / 2>/dev/null || echo sealed; touch /x 2>/dev/null || echo read-only; "
        "for n in $(seq 40); do sleep 30 & done"
    )
    done = fcrun("run", *hardened, IMAGE, "sh", "-c", script)
    assert done.stdout == "CapEff: 0000000000000000 NoNewPrivs: 1 here\nsealed\nread-only\n"
    assert done.returncode != 0 and "fork" in done.stderr.lower()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--sysctl", "net.no.such=1"), "sysctl net.no.such: No such file or directory"),
        (("--group-add", "nosuch"), "unable to find group nosuch"),
    ],
)
def test_what_its_guest_refuses_is_told(fcrun: Fcrun, client: NodeClient, argv: tuple[str, str], words: str) -> None:
    done = fcrun("run", "--rm", *argv, IMAGE, "true")
    assert (done.returncode, done.stdout) == (125, "") and words in done.stderr
    assert client.list() == []
