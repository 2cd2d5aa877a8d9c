"""Cgroups on the kernel of this machine. What only an io controller shows is in tests/vm/test_isolation.py."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.linux.cgroup import Cgroup
from perdure.testing.cgroups import new_cgroup


@pytest.fixture
def cgroup() -> Iterator[Cgroup]:
    """One of the test's own, with what this kernel has for it."""
    try:
        path = new_cgroup(str(os.getpid()))
    except OSError as error:
        pytest.skip(f"no cgroup can be made: {error}")
    yield Cgroup(str(path))
    assert not path.exists()


@pytest.fixture
def sleepers() -> Iterator[list[subprocess.Popen[bytes]]]:
    started = [subprocess.Popen(["sleep", "1000"]) for _ in range(2)]
    yield started
    for one in started:
        one.kill()
        one.wait()


def test_where_there_is_no_io_controller_nothing_is_parted(
    cgroup: Cgroup, sleepers: list[subprocess.Popen[bytes]]
) -> None:
    if "io" in (Path(cgroup.path) / "cgroup.controllers").read_text().split():
        Path(cgroup.path).rmdir()
        pytest.skip("this kernel has an io controller: what it does is shown by tests/vm/test_isolation.py")
    assert cgroup.enter([one.pid for one in sleepers])
    assert cgroup.part([sleepers[0].pid]) is None
    inside = (Path(cgroup.path) / "cgroup.procs").read_text().split()
    assert {int(pid) for pid in inside} == {one.pid for one in sleepers}
    assert cgroup.limit_io(["254:0"], bytes_per_s=1 << 20, ops_per_s=0) == ["254:0"]
    assert not cgroup.remove()
    for one in sleepers:
        one.kill()
        one.wait()
    assert cgroup.remove()


def test_a_parted_one_goes_with_its_parts(cgroup: Cgroup) -> None:
    for name in ("apart", "beside"):
        (Path(cgroup.path) / name).mkdir()
    assert cgroup.remove()
