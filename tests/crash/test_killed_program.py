"""The crash matrix is killed itself: nothing that it started goes on, and its folders are gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

DEADLINE_S = 60.0


def processes(folder: Path) -> list[str]:
    """The command lines of those whose environment names the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder).encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            pass  # it has ended, or is somebody else's
    return found


@pytest.mark.timeout(180)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_of_a_matrix_that_is_killed(tmp_path: Path, number: signal.Signals) -> None:
    environ = {**os.environ, "TMPDIR": str(tmp_path), "CRASH_DATABASE": "sqlite", "CRASH_POINTS": "emit"}
    program = subprocess.Popen([sys.executable, "-m", "perdure.testing.crash"], env=environ, cwd=tmp_path)
    deadline = time.monotonic() + DEADLINE_S  # its children are not ours: nobody tells when they come and go
    while not list(tmp_path.glob("crash-*/home/run/server.json")):
        assert program.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    program.send_signal(number)
    program.wait()
    while found := [*processes(tmp_path), *map(str, tmp_path.glob("crash-*"))]:
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
