"""What each process of a sandbox may have, and the tools that make its machine as it is wished for: the real guestd."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from perdure.errors import GuestFailed, InvalidValue, NotFound
from perdure.execution.guest.session import GuestSession
from perdure.execution.sandboxes import fittings
from perdure.execution.sandboxes import mounts as attaching
from perdure.formats import channel
from perdure.model import ExecSpec, Mount, MountKind, SandboxSpec, Ulimit

from .conftest import Guest
from .test_processes import collect


async def said(session: GuestSession, script: str, spec: SandboxSpec, user: str = "") -> str:
    wish = ExecSpec(command=["sh", "-c", script], user=user)
    process = await session.exec(wish, **fittings.bounds(spec))
    out, errors = await collect(process)
    assert (await process.wait(), errors) == (0, b"")
    process.release()
    return out.decode()


async def test_limits_hold_for_the_process_that_they_are_given_to(guest: Guest) -> None:
    limits = [
        Ulimit(name="nofile", soft=100, hard=200),
        Ulimit(name="core", soft=0, hard=0),
        Ulimit(name="fsize", soft=-1, hard=-1),
    ]
    script = "ulimit -Sn; ulimit -Hn; ulimit -c; ulimit -f"
    assert await said(guest.session, script, SandboxSpec(image="i", ulimits=limits)) == "100\n200\n0\nunlimited\n"
    assert await said(guest.session, "ulimit -Hn", SandboxSpec(image="i")) != "200\n"  # the next has its own


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
async def test_groups_are_added_to_those_of_the_user(guest: Guest) -> None:
    spec = SandboxSpec(image="i", groups=["daemon", "4321"])
    assert await said(guest.session, "id -G", spec, user="nobody") == "65534 1 4321\n"
    assert await said(guest.session, "id -G", spec, user="7:8") == "8 1 4321\n"
    with pytest.raises(InvalidValue, match="unable to find group nosuch"):
        await said(guest.session, "true", SandboxSpec(image="i", groups=["nosuch"]))


async def test_a_limit_that_the_kernel_refuses_is_told(guest: Guest) -> None:
    with pytest.raises(InvalidValue, match=r"cannot set limit 7 \(setrlimit\) to -1:-1"):
        await guest.session.exec(ExecSpec(command=["true"]), limits=["7 -1 -1"])


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
async def test_root_has_what_is_left_to_it(guest: Guest) -> None:
    script = "grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/self/status | tr -s '\\t\\n' ' '"
    dropped = SandboxSpec(image="i", cap_drop=["ALL"], cap_add=["CHOWN", "NET_BIND_SERVICE"], no_new_privileges=True)
    told = await said(guest.session, script, dropped)
    assert told == "CapEff: 0000000000000401 CapBnd: 0000000000000401 NoNewPrivs: 1 "
    told = await said(guest.session, script, dropped, user="nobody")
    assert told == "CapEff: 0000000000000000 CapBnd: 0000000000000401 NoNewPrivs: 1 "
    usual = await said(guest.session, script, SandboxSpec(image="i", cap_add=["ALL"]))
    assert "NoNewPrivs: 0" in usual and "0000000000000401" not in usual  # the next has its own


@dataclass(frozen=True, slots=True)
class FormerExec(channel.Frame):
    """As it was before there were limits and groups."""

    type = channel.Exec.type
    layout = "u64 u64 u8 u16 u16 text text texts texts"
    request: int
    process: int
    flags: int
    rows: int
    columns: int
    user: str
    cwd: str
    argv: tuple[str, ...]
    env: tuple[str, ...]


async def test_a_host_from_before_there_were_limits_is_understood(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "Exec", lambda *values: FormerExec(*values[:9]))
    assert await said(guest.session, "echo here", SandboxSpec(image="i")) == "here\n"
    assert guest.connections == 1


async def test_a_file_gets_more(guest: Guest, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n")
    await guest.session.files.tool("append", str(hosts), "10.0.0.7\tdb\n")
    assert hosts.read_text() == "127.0.0.1 localhost\n10.0.0.7\tdb\n"


async def test_a_file_is_made_to_get_more(guest: Guest, tmp_path: Path) -> None:
    missing, dangling, loop = tmp_path / "etc" / "hosts", tmp_path / "resolv.conf", tmp_path / "loop"
    dangling.symlink_to("../run/systemd/resolve/stub-resolv.conf")
    loop.symlink_to("loop")
    for file in (missing, dangling, loop):
        await guest.session.files.tool("append", str(file), "more\n")
        assert file.read_text() == "more\n" and not file.is_symlink()
    kept = tmp_path / "link"
    kept.symlink_to("etc/hosts")
    await guest.session.files.tool("append", str(kept), "again\n")
    assert kept.is_symlink() and missing.read_text() == "more\nagain\n"


async def test_one_may_be_in_many_groups(mounting_guest: Guest, tmp_path: Path) -> None:
    groups = tmp_path / "group"
    groups.write_text("".join(f"g{number}:x:{number}:nobody\n" for number in range(1000, 1080)))
    assert await said(mounting_guest.session, f"mount --bind {groups} /etc/group", SandboxSpec(image="i")) == ""
    spec = SandboxSpec(image="i", groups=["4321", "g1007"])
    expected = ["65534", *map(str, range(1000, 1080)), "4321"]
    found = (await said(mounting_guest.session, "id -G", spec, user="nobody")).split()
    assert sorted(set(found)) == sorted(expected)


ROOT = """
cd {root} && mount -t tmpfs root . && cd {root} && mkdir -p etc run tmp var data home var/lib/db && ln -s ../run var/run
mount -t tmpfs run run && mount -t tmpfs tmp tmp && mkdir tmp/box run/box && touch etc/app.conf etc/my.conf
"""
WRITE = "cd {root}; for at in {names}; do ( : >>$at ) 2>/dev/null && echo $at; done"
PLACES = "x etc/x etc/app.conf etc/my.conf home/x data/x run/x var/run/x run/box/x tmp/x tmp/box/x var/lib/db/x made/x"


@pytest.mark.parametrize(
    ("mounts", "expected"),
    [
        ([], "var/lib/db/x made/x"),
        ([Mount(target="/data", kind=MountKind.FOLDER)], "data/x var/lib/db/x made/x"),
        ([Mount(target="/data", kind=MountKind.FOLDER, read_only=True)], "var/lib/db/x made/x"),
        ([Mount(target="/var/run", kind=MountKind.TMPFS)], "run/x var/run/x var/lib/db/x made/x"),
        ([Mount(target="/run", kind=MountKind.TMPFS)], "run/x var/run/x var/lib/db/x made/x"),
        ([Mount(target="/var/run/box", kind=MountKind.TMPFS)], "run/box/x var/lib/db/x made/x"),
        ([Mount(target="/var/run", kind=MountKind.FOLDER)], "run/x var/run/x run/box/x var/lib/db/x made/x"),
        ([Mount(target="/tmp/box", kind=MountKind.FOLDER)], "tmp/box/x var/lib/db/x made/x"),
        (
            [
                Mount(target="/etc/app.conf", kind=MountKind.FOLDER, read_only=True),
                Mount(target="/etc/my.conf", kind=MountKind.FOLDER),
            ],
            "etc/my.conf var/lib/db/x made/x",
        ),
    ],
)
async def test_what_is_written_where_the_root_is_not(
    mounting_guest: Guest, tmp_path: Path, mounts: list[Mount], expected: str
) -> None:
    """As the start of a sandbox has it done; nothing but what a mount, or a volume of the image, is for."""
    session, spec = mounting_guest.session, SandboxSpec(image="i", read_only=True, mounts=mounts)
    (root := tmp_path / "root").mkdir()
    assert await said(session, ROOT.format(root=root), SandboxSpec(image="i")) == ""
    for step in (*attaching.steps(spec), *fittings.late_steps(spec, ["/var/lib/db", "/made"])):
        await session.files.tool(*(f"{root}{word}".rstrip("/") if word.startswith("/") else word for word in step))
    script = WRITE.format(root=root, names=PLACES)
    assert (await said(session, script, SandboxSpec(image="i"))).split() == expected.split()


async def test_a_file_that_is_only_read_is_one(mounting_guest: Guest, tmp_path: Path) -> None:
    session, file = mounting_guest.session, tmp_path / "app.conf"
    file.touch()
    mounts = [Mount(target=str(file), kind=MountKind.FOLDER, read_only=True)]
    for step in fittings.late_steps(SandboxSpec(image="i", mounts=mounts)):
        await session.files.tool(*step)
    assert await said(session, f"( : >>{file} ) 2>/dev/null || echo sealed", SandboxSpec(image="i")) == "sealed\n"


async def test_what_cannot_be_set_is_told(guest: Guest) -> None:
    with pytest.raises(NotFound, match=r"sysctl net\.no\.such: No such file or directory"):
        await guest.session.files.tool("sysctl", "net.no.such", "1")
    with pytest.raises((GuestFailed, InvalidValue, NotFound), match=r"remount /nowhere"):
        await guest.session.files.tool("remount", "/nowhere", "1", "")
    with pytest.raises((GuestFailed, NotFound), match="cgroup controller pids"):
        await guest.session.files.tool("pids", "5")  # on this machine guestd has no cgroup
    with pytest.raises(GuestFailed, match="no such file tool"):
        await guest.session.files.tool("append", "only one")
