"""Which disk a file lies on, as the io controller names it (the kernel's admin-guide/cgroup-v2, IO)."""

from __future__ import annotations

import os


def disk_of(path: str) -> str:
    """``MAJOR:MINOR`` of the whole disk (also where the file is on a partition of it) that holds a file's content.

    Empty where that is on none, or on more than one: memory, a share of another machine, a pool. Raises OSError.
    """
    number = os.stat(path).st_dev
    if not os.major(number) and not (number := _source(number)):
        return ""
    folder = f"/sys/dev/block/{os.major(number)}:{os.minor(number)}"
    if os.path.exists(f"{folder}/partition"):
        folder = os.path.dirname(os.path.realpath(folder))
    try:
        with open(f"{folder}/dev", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def _source(number: int) -> int:
    """The device below a file system that has numbers of its own (btrfs); 0: none. From proc_pid_mountinfo(5)."""
    wanted = f"{os.major(number)}:{os.minor(number)}"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            mount, _, more = line.partition(" - ")
            if mount.split(" ")[2] == wanted and (source := more.split(" ")[1]).startswith("/dev/"):
                try:
                    return os.stat(source).st_rdev
                except OSError:
                    return 0
    return 0
