"""Who is killed at random below the line: the first of those that are wished and there, and nobody else."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perdure.testing import belowline

KEEPER = ("sh", "-c", 'exec 3<&0; "$0" 1000 & echo $!; read line <&3')
DEADLINE_S = 30.0


@pytest.fixture
def keep(tmp_path: Path) -> Iterator[Callable[[str, str], subprocess.Popen[str]]]:
    """Start a keeper in the machine folder of a sandbox, which has started a program."""
    keepers: list[subprocess.Popen[str]] = []

    def keep(sandbox: str, program: str) -> subprocess.Popen[str]:
        folder = tmp_path / "m" / sandbox
        folder.mkdir(parents=True)
        copy = shutil.copy(shutil.which("sleep") or "", tmp_path / program)
        pipe, words = subprocess.PIPE, [*KEEPER, copy]
        keeper = subprocess.Popen(words, cwd=folder, stdin=pipe, stdout=pipe, text=True, start_new_session=True)
        keepers.append(keeper)
        assert keeper.stdout is not None
        name, deadline = Path(f"/proc/{keeper.stdout.readline().strip()}/comm"), time.monotonic() + DEADLINE_S
        while name.read_text().strip() != program:  # until then it is a second keeper, to whoever looks
            assert time.monotonic() < deadline
        return keeper

    yield keep
    for keeper in keepers:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(keeper.pid, signal.SIGKILL)
        keeper.communicate()


def killed(folder: Path, *wishes: str) -> str:
    command = [*belowline.KILL_WISHED, str(folder / "m"), *wishes]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def killed_when_the_first_is_gone(folder: Path, *wishes: str) -> str:
    """The first has ended since it was seen. Both outputs are told as one, as the launcher does."""
    shell, option, script, *rest = belowline.KILL_WISHED
    gone = 'kill() { if [ -z "$tried" ]; then tried=1; command kill -9 4194304; else command kill "$@"; fi; }\n'
    command = [shell, option, gone + script, *rest, str(folder / "m"), *wishes]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.stdout.strip()


def killed_at_last(folder: Path, *wishes: str) -> str:
    """Who looks while others begin and end may see nobody: it looks again, as the campaign does."""
    deadline = time.monotonic() + DEADLINE_S
    while not (who := killed(folder, *wishes)):
        assert time.monotonic() < deadline
    return who


def test_the_first_wish_that_is_there_is_killed(
    tmp_path: Path, keep: Callable[[str, str], subprocess.Popen[str]]
) -> None:
    first, second = keep("one", "firecracker"), keep("other", "pager")
    assert killed_at_last(tmp_path, "pager/one", "firecracker/other", "pager/other", "keeper/one") == "pager/other"
    assert killed(tmp_path, "pager/other", "keeper/oth") == ""
    assert (first.poll(), second.poll()) == (None, None)
    assert killed_at_last(tmp_path, "keeper/other", "keeper/one") == "keeper/other"
    assert second.wait(DEADLINE_S) == -9
    assert killed_at_last(tmp_path, "firecracker/one") == "firecracker/one"
    assert first.poll() is None


def test_one_that_ends_meanwhile_is_passed_over_without_a_word(
    tmp_path: Path, keep: Callable[[str, str], subprocess.Popen[str]]
) -> None:
    first, _ = keep("one", "firecracker"), keep("other", "pager")
    deadline = time.monotonic() + DEADLINE_S
    while not (who := killed_when_the_first_is_gone(tmp_path, "keeper/one", "keeper/other")):
        assert time.monotonic() < deadline
    assert who == "keeper/other"
    assert first.poll() is None
