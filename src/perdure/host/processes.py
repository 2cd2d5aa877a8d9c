"""Programs that outlive who started them: started without a parent, found again, ended, and never mistaken.

A process is named by its id and the time it started (proc(5), field 22 of stat), because ids are used again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from perdure.errors import MachineFailed
from perdure.linux.readiness import readable

# The program outlives the shell that starts it and becomes init's child: the caller need not reap it. The shell also
# writes down who it is (its line of /proc/PID/stat), so that a kill of the caller leaves none that nobody knows.
_DETACH = """
file=$1; shift
"$@" </dev/null >>"$0" 2>&1 &
IFS= read -r name </proc/$!/stat && printf '%s\\n' "$name" >"$file"
"""


@contextmanager
def whole(signals: Sequence[signal.Signals] = (signal.SIGINT,)) -> Iterator[None]:
    """What is begun within is finished: handlers of these signals run at its end.

    For the start of a process: a Ctrl-C within ``Popen`` leaves one that runs and that nobody knows. Programs started
    within get the signals as always. In other threads than the main one no handler runs anyway.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    former = {number: signal.getsignal(number) for number in signals}
    for number in signals:
        if callable(former[number]):
            signal.signal(number, lambda *told: came.append(told))
    try:
        yield
    finally:
        for number in signals:
            if callable(former[number]):
                signal.signal(number, former[number])
        for told, frame in came:
            handler = former[signal.Signals(told)]
            assert callable(handler)
            handler(told, frame)


@dataclass(frozen=True)
class ProcessName:
    """A process of this boot: id and start time in clock ticks since the boot."""

    pid: int
    started: int

    @staticmethod
    def of(pid: int) -> ProcessName | None:
        """The name of a living process; None when there is none, or only a zombie."""
        try:
            state, name = _parse(Path(f"/proc/{pid}/stat").read_text())
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if state in "ZX" else name

    @property
    def alive(self) -> bool:
        return ProcessName.of(self.pid) == self

    def end(self, timeout_s: float = 5.0) -> None:
        """SIGTERM, then SIGKILL, and wait until it is gone; nothing when it is not this process any more.

        Raises MachineFailed when it does not go.
        """
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if not self.alive:  # the id may have been given to another between: the descriptor holds it from here on
                return
            for number, patience_s in ((signal.SIGTERM, timeout_s), (signal.SIGKILL, timeout_s)):
                try:
                    signal.pidfd_send_signal(descriptor, number)
                except ProcessLookupError:
                    return
                if readable(descriptor, patience_s):
                    return
        finally:
            os.close(descriptor)
        raise MachineFailed(f"process {self.pid} does not end", hint="See what it waits for: cat /proc/PID/wchan")


class ProcessFile:
    """The file that remembers one process over the life of its starter."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def path(self) -> Path:
        return self._path

    def read(self) -> ProcessName | None:
        """The remembered process, if it lives."""
        try:
            _, name = _parse(self._path.read_text())
        except (FileNotFoundError, ValueError, IndexError):
            return None
        return name if name.alive else None

    def end(self) -> bool:
        """End the process and forget it. False: it did not live."""
        name = self.read()
        if name is not None:
            name.end()
        self._path.unlink(missing_ok=True)
        return name is not None


def start_detached(
    command: Sequence[str],
    log: Path,
    file: ProcessFile,
    environment: Mapping[str, str] | None = None,
    *,
    keep: Sequence[int] = (),
) -> ProcessName:
    """Start a program in a session of its own, its output in a fresh ``log``, remembered in ``file``. It has copies of
    the descriptors ``keep``, under the same numbers.

    Raises MachineFailed with the log's end when it is gone at once.
    """
    file.path.unlink(missing_ok=True)
    log.write_bytes(b"")
    shell = ["/bin/sh", "-c", _DETACH, str(log), str(file.path), *command]
    env = None if environment is None else dict(environment)
    subprocess.run(shell, start_new_session=True, env=env, pass_fds=keep, check=True)
    name = file.read()
    if name is None:
        raise MachineFailed(f"{command[0]} ended at once: {last_lines(log)}", hint=f"See {log}")
    return name


def _parse(stat: str) -> tuple[str, ProcessName]:
    """State and name from a line of /proc/PID/stat. The program's name in it may hold anything: count from its end."""
    fields = stat[stat.rindex(")") + 2 :].split()
    return fields[0], ProcessName(int(stat[: stat.index(" ")]), int(fields[19]))


def last_lines(log: Path, count: int = 5) -> str:
    """The end of a log, for a message."""
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except FileNotFoundError:
        return "(no log)"
    return " | ".join(line.strip() for line in lines[-count:]) or "(an empty log)"
