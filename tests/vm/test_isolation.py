"""What a machine's processes may do to the kernel that runs them, seen from beside them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from perdure.client.node import NodeClient
from perdure.host.paths import Home
from perdure.keeper.jail import FIRST_UID, MACHINES_MAX
from perdure.model import ExecSpec, SandboxInfo

pytestmark = pytest.mark.vm
Start = Callable[..., SandboxInfo]
Below = Callable[[list[str]], str]

LOOK = r"""
import json, os, sys
seen = {}
for pid in sys.argv[1:]:
    read = lambda name: open(f"/proc/{pid}/{name}").read()
    folder = lambda path: sorted(os.listdir(f"/proc/{pid}/root{path}"))
    facts = lambda text: dict(line.split(":", 1) for line in text.splitlines())
    cgroup = "/sys/fs/cgroup" + read("cgroup").strip().partition("::")[2]
    seen[pid] = {
        "threads": [facts(read(f"task/{task}/status")) for task in os.listdir(f"/proc/{pid}/task")],
        "root": folder("/"), "dev": folder("/dev") if "dev" in folder("/") else [],
        "mounts": [line.split() for line in read("mountinfo").splitlines()],
        "namespaces": {name: os.readlink(f"/proc/{pid}/ns/{name}") for name in ("mnt", "pid")},
        "limits": {}, "cgroup": cgroup,
    }
    for name in ("memory.max", "memory.swap.max", "pids.max", "cpu.max"):
        if os.path.exists(f"{cgroup}/{name}"):
            seen[pid]["limits"][name] = open(f"{cgroup}/{name}").read().split()
print(json.dumps(seen))
"""

# What a VMM that a guest has taken over would try: it is the machine's user, in the machine's mounts and root.
TRY = r"""
import ctypes, errno, json, os, sys
assert ctypes.CDLL(None).setns(os.open(f"/proc/{sys.argv[1]}/ns/mnt", os.O_RDONLY), 0) == 0
uid = int(sys.argv[2])
os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
def attempt(act):
    try:
        act()
        return "done"
    except OSError as error:
        return errno.errorcode[error.errno]
print(json.dumps({
    "write the image": attempt(lambda: os.open("image", os.O_WRONLY)),
    "open the image to all": attempt(lambda: os.chmod("image", 0o666)),
    "replace the image": attempt(lambda: os.unlink("image")),
    "read the image": attempt(lambda: os.open("image", os.O_RDONLY)),
    "write the overlay": attempt(lambda: os.open("overlay", os.O_WRONLY)),
    "make a device": attempt(lambda: os.mknod("disk", 0o60666, os.makedev(254, 0))),
    "leave": attempt(lambda: os.chroot("/dev")),
    "fill the memory": attempt(lambda: open("fill", "wb").write(bytes(1 << 30))),
    "clean": attempt(lambda: os.unlink("fill")),
}))
"""

# A disk of the kernel below the line, and a cgroup as a machine's with two processes: one is parted and limited.
FLOOD = r"""
import json, mmap, os, subprocess, sys, time
sys.path.insert(0, sys.argv[1])
from perdure.linux.cgroup import Cgroup
BYTES = 3 << 20
with open("/tmp/flood.disk", "wb") as file:
    file.truncate(BYTES)
disk = subprocess.run(["losetup", "-f", "--show", file.name], capture_output=True, text=True, check=True).stdout.strip()
number = os.stat(disk).st_rdev
def flood():
    hearing, telling = os.pipe()
    told, tell = os.pipe()
    pid = os.fork()
    if not pid:
        os.read(hearing, 1)
        fd, data = os.open(disk, os.O_WRONLY | os.O_DIRECT), mmap.mmap(-1, 1 << 20)
        began = time.monotonic()
        for _ in range(BYTES >> 20):
            os.write(fd, data)
        os.write(tell, str(time.monotonic() - began).encode())
        os._exit(0)
    return pid, telling, told
floods = [flood(), flood()]
machine = Cgroup.make("perdure-flood/machine")
machine.enter([pid for pid, _, _ in floods])
machine.limit(memory_bytes=1 << 30, processes=10)
apart = machine.part([floods[0][0]])
seen = {"refused": apart.limit_io([f"{os.major(number)}:{os.minor(number)}"], bytes_per_s=1 << 20, ops_per_s=0)}
seen["io.max"] = open(f"{apart.path}/io.max").read().split()[1:]
seen["where"] = [open(f"/proc/{pid}/cgroup").read().strip() for pid, _, _ in floods]
seen["all"] = open(f"{machine.path}/memory.max").read().strip()
seen["took"] = []
for pid, telling, told in floods[::-1]:
    os.write(telling, b"x")
    seen["took"].append(float(os.read(told, 99)))
    os.waitpid(pid, 0)
seen["removed"] = machine.remove() and Cgroup("/sys/fs/cgroup/perdure-flood").remove()
subprocess.run(["losetup", "-d", disk], check=True)
os.unlink("/tmp/flood.disk")
print(json.dumps(seen))
"""

# How long the guest's own disk takes for 5 MiB at once, and for 300 small writes.
WRITE = r"""
for each in "bs=1M count=5" "bs=4k count=300"; do
    LC_ALL=C dd if=/dev/zero of=/flood $each oflag=direct conv=notrunc 2>&1 |
        sed -n 's/.* copied, \([0-9.e-]*\) s,.*/\1/p'
done
"""


def look(below: Below, *pids: int) -> dict[int, dict[str, object]]:
    return {int(pid): seen for pid, seen in json.loads(below([sys.executable, "-c", LOOK, *map(str, pids)])).items()}


def test_a_machine_has_nothing_but_its_own(start: Start, client: NodeClient, below: Below) -> None:
    first, second = start("sleep", "100000"), start("sleep", "100000", cpus=0.5)
    client.suspend(first.id)
    first = client.resume(first.id)  # has a pager
    second = client.get(second.id)
    vmm, other, pager = (
        first.machine["firecracker_pid"],
        second.machine["firecracker_pid"],
        first.machine["pager_pid"],
    )
    seen = look(below, vmm, other, pager)
    for pid in (vmm, other, pager):
        for thread in seen[pid]["threads"]:  # type: ignore[attr-defined]
            uids = set(map(int, thread["Uid"].split())) | set(map(int, thread["Gid"].split()))
            assert len(uids) == 1 and FIRST_UID <= uids.pop() < FIRST_UID + 2 * MACHINES_MAX
            assert not thread["Groups"].split()
            assert [int(thread[name], 16) for name in ("CapPrm", "CapEff", "CapInh", "CapAmb")] == [0] * 4
            assert int(thread["NoNewPrivs"]) == 1
            assert int(thread["Seccomp"]) == 2, thread["Name"]
    users = [seen[pid]["threads"][0]["Uid"].split()[0] for pid in (vmm, other, pager)]  # type: ignore[index]
    assert len(set(users)) == 3
    assert seen[pager]["root"] == []
    assert set(seen[vmm]["root"]) == {  # type: ignore[arg-type]
        *("dev", "run", "firecracker", "firecracker.pid", "api.sock", "vsock.sock", "vsock.sock_4751", "pager.sock"),
        *("state", "image", "overlay"),
    }
    assert set(seen[vmm]["dev"]) <= {"kvm", "net", "urandom", "userfaultfd"}  # type: ignore[arg-type]
    places = {mount[4]: mount[5].split(",") for mount in seen[vmm]["mounts"]}  # type: ignore[attr-defined]
    assert set(places) == {"/", "/image", "/overlay"}
    assert "ro" in places["/image"] and {"nodev", "nosuid", "noexec"} <= set(places["/overlay"])
    assert "ro" in {m[4]: m[5].split(",") for m in seen[other]["mounts"]}["/memory"]  # type: ignore[attr-defined]
    for kind in ("mnt", "pid"):
        assert seen[vmm]["namespaces"][kind] != seen[other]["namespaces"][kind]  # type: ignore[index]
    assert str(seen[vmm]["cgroup"]).endswith(first.id) and seen[pager]["cgroup"] == seen[vmm]["cgroup"]
    limits = seen[other]["limits"]
    assert set(limits) == {"memory.max", "memory.swap.max", "pids.max", "cpu.max"}  # type: ignore[call-overload]
    assert int(limits["memory.max"][0]) < 2 << 30 and limits["pids.max"] != ["max"]  # type: ignore[index]
    assert limits["cpu.max"] == ["50000", "100000"]  # type: ignore[index]
    assert seen[vmm]["limits"]["cpu.max"][0] == "max"  # type: ignore[index]

    tried = json.loads(below([sys.executable, "-c", TRY, str(vmm), users[0]]))
    assert tried.pop("write the image") in ("EACCES", "EROFS")
    assert tried.pop("open the image to all") in ("EPERM", "EROFS")
    assert tried == {
        "replace the image": "EBUSY",
        "read the image": "done",
        "write the overlay": "done",
        "make a device": "EPERM",
        "leave": "EPERM",
        "fill the memory": "ENOSPC",
        "clean": "done",
    }
    assert client.run(first.id, ExecSpec(command=["echo", "lives"]))[1] == b"lives\n"


def test_a_guest_that_floods_its_disk_is_held_also_after_it_slept_and_in_its_forks(
    start: Start, client: NodeClient
) -> None:
    free, held = start("sleep", "100000"), start("sleep", "100000", disk_bytes_per_s=1 << 20, disk_ops_per_s=100)

    def took(sandbox: str) -> list[float]:
        status, out, err = client.run(sandbox, ExecSpec(command=["sh", "-c", WRITE]))
        assert status == 0, err
        return [float(line) for line in out.split()]

    # Whoever is frozen in the middle of a read of /dev/zero is given a part of it, as by any signal: dd is to ask on.
    begun = "(dd if=/dev/zero of=/begun bs=1M count=6 iflag=fullblock oflag=direct; touch /over) >/dev/null 2>&1 &"
    assert client.run(held.id, ExecSpec(command=["sh", "-c", begun]))[0] == 0
    client.suspend(held.id)  # while a write waits for its turn
    client.resume(held.id)
    over = ["sh", "-c", "until test -e /over; do sleep 0.1; done; stat -c %s /begun"]
    assert client.run(held.id, ExecSpec(command=over))[1] == b"6291456\n"
    (fork,) = client.fork(held.id, [])
    times = {"free": took(free.id), "held": took(held.id), "fork": took(fork.id)}
    for sandbox in ("held", "fork"):
        large, small = times[sandbox]
        assert large > 2.5 and small > 1.0, times  # of which a second's worth is free; without: 0.2 and 0.5
    assert fork.spec.disk_bytes_per_s == 1 << 20


def test_the_kernel_holds_what_a_machine_does_to_a_disk_by_itself(below: Below) -> None:
    source = Path(__file__).parents[2] / "src"
    seen = json.loads(below([sys.executable, "-c", FLOOD, str(source)]))
    assert seen["refused"] == [] and seen["removed"]
    assert seen["io.max"] == ["rbps=1048576", "wbps=1048576", "riops=max", "wiops=max"]
    assert [where.partition("machine/")[2] for where in seen["where"]] == ["apart", "beside"]
    assert int(seen["all"]) == 1 << 30
    free, held = seen["took"]
    assert held > 1.5 > free


def test_a_capture_of_a_hostile_machine_reaches_no_other_file(
    start: Start, client: NodeClient, below: Below, home: Home
) -> None:
    """Its VMM owns the folder that captures are written to, and may put anything there."""
    info = start("sleep", "100000")
    secret = home.root / "secret"
    secret.write_text("of the host")
    root = f"/proc/{info.machine['firecracker_pid']}/root"
    below(["/bin/ln", "-s", str(secret), f"{root}/capture.state"])
    client.suspend(info.id)  # what is there is removed first
    assert secret.read_text() == "of the host"
    secret.unlink()
    assert client.resume(info.id).machine["main_pid"] == info.machine["main_pid"]


def test_a_killed_keeper_leaves_no_process_and_no_mount(
    start: Start, client: NodeClient, below: Below, kill_below: Callable[[int], None]
) -> None:
    info = start("sleep", "100000")
    cgroup = str(look(below, info.machine["firecracker_pid"])[info.machine["firecracker_pid"]]["cgroup"])
    uid = below(["/bin/stat", "-c", "%u", f"/proc/{info.machine['firecracker_pid']}"]).strip()
    kill_below(info.machine["keeper_pid"])
    assert client.wait(info.id).cause == "keeper-died"
    show = "stat -c %u /proc/[0-9]* 2>/dev/null; grep perdure /proc/mounts; ls -d /sys/fs/cgroup/perdure-*/*; true"
    left = below(["/bin/sh", "-c", show])
    assert uid not in left.split() and "/root" not in left
    assert os.path.basename(cgroup) not in left  # noqa: PTH119 - of another kernel
