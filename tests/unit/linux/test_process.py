"""Processes that die with who made them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from perdure.linux.process import spawn


@pytest.mark.parametrize("huge_pages", [True, False])
def test_a_program_can_be_kept_from_huge_pages(tmp_path: Path, huge_pages: bool) -> None:
    if "THP_enabled" not in Path("/proc/self/status").read_text():
        pytest.skip("this kernel does not say THP_enabled")
    with (tmp_path / "out").open("wb") as output:
        argv = ["/bin/grep", "THP_enabled", "/proc/self/status"]
        process = spawn(argv, cwd="/", env={}, output=output.fileno(), huge_pages=huge_pages)
        assert process.wait() == 0
        process.close()
    assert (tmp_path / "out").read_text().split() == ["THP_enabled:", str(int(huge_pages))]
    assert "THP_enabled:\t1" in Path("/proc/self/status").read_text()


def test_what_cannot_be_executed_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), Path(os.devnull).open("wb") as output:
        spawn([str(tmp_path / "nothing")], cwd="/", env={}, output=output.fileno())
