from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from perdure.errors import MachineFailed
from perdure.host.processes import ProcessFile, ProcessName, start_detached, whole


@pytest.fixture
def file(tmp_path: Path) -> ProcessFile:
    return ProcessFile(tmp_path / "it.process")


def test_starts_finds_again_and_ends(tmp_path: Path, file: ProcessFile) -> None:
    name = start_detached(["sleep", "60"], tmp_path / "log", file)
    assert ProcessFile(file.path).read() == name
    assert os.getsid(name.pid) != os.getsid(0)
    assert file.end()
    assert not name.alive
    assert not file.path.exists()
    assert not file.end()


def test_its_output_goes_to_the_log_and_its_environment_is_what_was_given(tmp_path: Path, file: ProcessFile) -> None:
    command = ["/bin/sh", "-c", 'echo "$0 $WORD"; echo error >&2; exec sleep 60', "a b'c"]
    start_detached(command, tmp_path / "log", file, {"WORD": "w", "PATH": os.environ["PATH"]})
    deadline = time.monotonic() + 10
    while (tmp_path / "log").read_text() != "a b'c w\nerror\n" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (tmp_path / "log").read_text() == "a b'c w\nerror\n"
    assert file.end()


def test_a_process_that_cannot_start_says_why(tmp_path: Path, file: ProcessFile) -> None:
    with pytest.raises(MachineFailed, match="no-such-program"):
        for _ in range(100):  # the shell may still be about to fail when it is looked at
            name = start_detached(["/no-such-program"], tmp_path / "log", file)
            while name.alive:
                time.sleep(0.01)


def test_never_ends_a_process_that_is_not_the_remembered_one(file: ProcessFile) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        line = Path(f"/proc/{other.pid}/stat").read_text()
        started = line[line.rindex(")") + 2 :].split()[19]
        file.path.write_text(line.replace(f" {started} ", f" {int(started) - 1} "))
        assert file.read() is None
        assert not file.end()
        assert other.poll() is None
        ProcessName(other.pid, int(started) - 1).end()
        assert other.poll() is None
        other.kill()


def test_a_zombie_does_not_live() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.DEVNULL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert ProcessName.of(child.pid) is None
    child.wait()


def test_one_that_ignores_sigterm_is_killed(tmp_path: Path, file: ProcessFile) -> None:
    name = start_detached(
        ["/bin/sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"], tmp_path / "log", file
    )
    while "ready" not in (tmp_path / "log").read_text():
        assert name.alive
        time.sleep(0.01)
    name.end(timeout_s=0.2)
    assert not name.alive


@pytest.mark.parametrize("text", ["", "12", "12 (sleep", "12 (sleep) S", "nonsense"])
def test_a_damaged_file_names_nobody(file: ProcessFile, text: str) -> None:
    file.path.write_text(text)
    assert file.read() is None


def test_a_start_is_whole_whatever_is_pressed_meanwhile() -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt), whole():
        os.kill(os.getpid(), signal.SIGINT)  # the handler of Python runs at once, but for ``whole``
        done.append("started")
    assert done == ["started"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_program_started_whole_is_interrupted_as_always() -> None:
    with whole():
        process = subprocess.Popen(["sleep", "60"])
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == -signal.SIGINT
