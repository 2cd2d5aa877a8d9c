"""Cgroups for tests that need one of their own."""

from __future__ import annotations

import os
from pathlib import Path


def new_cgroup(name: str) -> Path:
    """A cgroup v2 that the test removes. Raises OSError: there is no hierarchy that may be written."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, folder, kind, *_ = line.split()
        if kind == "cgroup2" and os.access(folder, os.W_OK):
            path = Path(folder) / f"perdure-test-{name}"
            path.mkdir()
            return path
    raise OSError("no cgroup v2 hierarchy may be written")


def limited_cgroup(name: str, *, memory_bytes: int) -> Path:
    """A cgroup, of version 2 or 1, whose processes have so much memory; the test removes it. OSError: none may be
    made."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, folder, kind, options, *_ = line.split()
        limit = {"cgroup2": "memory.max", "cgroup": "memory.limit_in_bytes"}.get(kind)
        if limit is None or (kind == "cgroup" and "memory" not in options.split(",")) or not os.access(folder, os.W_OK):
            continue
        path = Path(folder) / f"perdure-test-{name}"
        path.mkdir()
        try:
            (path / limit).write_text(str(memory_bytes))
        except OSError:  # this hierarchy has no memory in it
            path.rmdir()
            continue
        return path
    raise OSError("no cgroup hierarchy with a limit of memory may be written")
