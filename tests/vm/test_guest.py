"""What guestd makes of a microVM: mounts, devices, names, users, terminals. Its protocol is tested on the host."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from perdure.client.node import NodeClient
from perdure.model import ExecSpec, SandboxInfo

pytestmark = pytest.mark.vm
Start = Callable[..., SandboxInfo]
Fcrun = Callable[..., "subprocess.CompletedProcess[str]"]

_LOOK = """
cut -d' ' -f5,9- /proc/self/mountinfo | sed 's/ rw.*//'
echo host $(hostname) $(cat /etc/hostname)
grep -c localhost /etc/hosts
echo user $(id -u):$(id -g) home $HOME cgroup $(cat /proc/self/cgroup)
unshare -Ur sh -c 'echo namespace $(id -u)'
echo again > /dev/stdout
echo /dev: $(ls -d /dev/null /dev/shm /dev/pts/ptmx /dev/fd /dev/stdin)
"""


def test_a_process_finds_a_whole_linux(start: Start, client: NodeClient) -> None:
    ref = start("sleep", "1000", hostname="lark").id
    status, out, errors = client.run(ref, ExecSpec(command=["sh", "-c", _LOOK]))
    said = out.decode()
    assert (status, errors) == (0, b"")
    for folder in ("/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/run", "/tmp"):
        assert f"\n{folder} " in said
    assert said.startswith("/ ")  # its root is the root of its mounts, so the kernel gives it user namespaces
    assert "overlay" in said.splitlines()[0]
    assert "/image" not in said.splitlines()[1]
    assert "host lark lark\n1\n" in said or "host lark lark\n2\n" in said
    assert "user 0:0 home /root cgroup 0::/workload" in said
    assert "namespace 0\nagain\n" in said
    assert said.endswith("/dev: /dev/fd /dev/null /dev/pts/ptmx /dev/shm /dev/stdin\n")


def test_users_of_the_image_and_their_streams(start: Start, client: NodeClient) -> None:
    ref = start("sleep", "1000").id
    look = "echo $(id -u):$(id -g) $HOME; echo more > /dev/stdout; echo no > /root/x || echo refused"
    status, out, _ = client.run(ref, ExecSpec(command=["sh", "-c", look], user="nobody"))
    assert (status, out) == (0, b"65534:65534 /nonexistent\nmore\nrefused\n")


def test_a_terminal_has_a_name_and_a_size(start: Start, client: NodeClient) -> None:
    ref = start("sleep", "1000").id
    look = ExecSpec(command=["sh", "-c", "tty; stty size; echo $TERM"], tty=True, rows=33, columns=101)
    status, out, _ = client.run(ref, look)
    assert (status, out.replace(b"\r", b"")) == (0, b"/dev/pts/0\n33 101\nxterm\n")


def test_orphans_are_reaped(start: Start, client: NodeClient) -> None:
    ref = start("sleep", "1000").id
    assert client.run(ref, ExecSpec(command=["sh", "-c", "(sleep 0.1 & sleep 0.1 &) & true"]))[0] == 0
    count = "sleep 1; grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l"
    assert client.run(ref, ExecSpec(command=["sh", "-c", count]))[1].strip() == b"0"
