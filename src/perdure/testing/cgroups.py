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
