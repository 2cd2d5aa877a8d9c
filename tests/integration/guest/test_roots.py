"""What guestd writes into the root of a sandbox, whatever the workload has made of that: mounts of its own, or none."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import has_mounts

pytestmark = pytest.mark.skipif(not has_mounts(), reason="no mount namespace can be made: that needs root")
Write = Callable[..., str]
SEAL = "mount root -o remount,bind,ro"
LOOK = "( : >root/x ) 2>/dev/null && echo written || echo sealed"


@pytest.fixture
def write(guest_build: Path, tmp_path: Path) -> Write:
    def write(before: str, after: str, *only_over: str) -> str:
        """What shells say before and after guestd wrote /etc/hostname into ``root``."""
        words = " ".join(f"'{word}'" for word in ("root", "/etc/hostname", "fork\n", *only_over))
        script = f"mkdir -p root; mount -t tmpfs root root; {before}\n{guest_build}/root_write {words}\n"
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", script + after], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert done.stderr == ""
        return done.stdout

    return write


def test_a_root_stays_writable_below_whatever_is_only_read(write: Write) -> None:
    over = "mkdir root/etc; mount -t tmpfs conf root/etc; mount -o remount,bind,ro root/etc"
    assert write(over, f"{LOOK}; ls root/etc") == "written\n"
    link = (
        "mkdir root/etc root/store; mount -t tmpfs store root/store; : >root/store/name; mount -o remount,ro root/store"
    )
    assert write(f"{link}; ln -s /store/name root/etc/hostname", f"{LOOK}; cat root/store/name") == "written\n"


def test_a_root_that_is_only_read_stays_so_with_all_its_flags(write: Write) -> None:
    flags = "nosuid,nodev,noexec,noatime"
    seen = f"cat root/etc/hostname; {LOOK}; grep '/root ' /proc/self/mountinfo | cut -d' ' -f6"
    assert write(f"mkdir root/etc; {SEAL},{flags}", seen) == f"fork\nsealed\nro,{flags}\n"
    assert write(f"mkdir root/etc; {SEAL}", seen) == "fork\nsealed\nro,relatime\n"
    over = f"mkdir root/etc; mount -t tmpfs conf root/etc; mount -o remount,bind,ro root/etc; {SEAL}"
    assert write(over, f"{LOOK}; ls root/etc") == "sealed\n"


def test_a_file_is_made_where_an_image_has_no_place_for_it(write: Write) -> None:
    assert write(":", "cat root/etc/hostname") == "fork\n"
    dangling = "mkdir root/etc; ln -s ../run/made/by/init root/etc/hostname"
    assert write(dangling, "cat root/etc/hostname; find root -type l") == "fork\n"
    assert write("mkdir root/etc; ln -s hostname root/etc/hostname", "cat root/etc/hostname") == "fork\n"
    linked = "mkdir root/etc root/usr; ln -s /usr/name root/etc/hostname"
    assert write(linked, "cat root/usr/name; ls root/etc -l | grep -c -- '-> /usr/name'") == "fork\n1\n"


@pytest.mark.parametrize("only_over", [(), ("old\n",)])
@pytest.mark.parametrize(
    "made", ["mkfifo root/pipe", "mknod root/pipe c 5 2", "mkdir root/pipe", "mknod root/pipe c 1 5"]
)
def test_nothing_that_the_workload_puts_there_is_waited_for(
    write: Write, made: str, only_over: tuple[str, ...]
) -> None:
    before = f"mkdir root/etc; {made}; ln -s /pipe root/etc/hostname"
    kinds = {"mkfifo": "fifo", "mkdir": "directory"}.get(made.split()[0], "character special file")
    assert write(before, "stat -c %F root/pipe", *only_over) == f"{kinds}\n"


def test_what_was_added_stays(write: Write) -> None:
    before = "mkdir root/etc; printf 'old\\nmine\\n' >root/etc/hostname"
    assert write(before, "cat root/etc/hostname", "old\n") == "fork\nmine\n"
    assert write(before, "cat root/etc/hostname", "other\n") == "old\nmine\n"
