"""Which disk a file lies on, on what this machine has."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from perdure.linux import blockdevices


def test_memory_is_no_disk() -> None:
    assert blockdevices.disk_of("/proc/self/status") == ""
    if Path("/dev/shm").is_mount():
        assert blockdevices.disk_of("/dev/shm") == ""


def test_a_file_on_a_disk_or_a_partition_of_it(tmp_path: Path) -> None:
    found = blockdevices.disk_of(str(tmp_path))
    if not found:
        pytest.skip("the folder of this test is on no disk")
    assert not Path(f"/sys/dev/block/{found}/partition").exists()
    said = subprocess.run(["findmnt", "-no", "SOURCE", "-T", tmp_path], capture_output=True, text=True, check=True)
    name = Path(said.stdout.strip()).resolve().name
    assert (Path("/sys/class/block") / name).resolve().is_relative_to(Path(f"/sys/dev/block/{found}").resolve())


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError):
        blockdevices.disk_of("/nonexistent")
