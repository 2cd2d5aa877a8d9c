"""What is done when a program of tests is killed itself: what it started ends, what it made in folders goes.

SIGKILL leaves a program no time, and servers that lose their node start a real one. So a process beside it reads what
is to be done from a pipe, and does it once the program has closed the pipe, however it ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure.linux.readiness import readable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

END_S = 10.0


class Will:
    """``kill``, ``run`` (commands, in the environment of now, after the kills) and ``remove`` add to it; ``keep`` takes
    a folder off it. What it says is done at its end in any case: it is to be harmless where there is nothing left."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "perdure.testing.will"]
        self._executor = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def kill(self, pid: int) -> None:
        self._say("kill", pid)

    def run(self, command: Sequence[str]) -> None:
        self._say("run", [list(command), dict(os.environ)])

    def remove(self, folder: Path) -> None:
        self._say("remove", str(folder))

    def keep(self, folder: Path) -> None:
        self._say("keep", str(folder))

    def _say(self, what: str, whom: Any) -> None:
        assert self._executor.stdin is not None
        self._executor.stdin.write(json.dumps([what, whom]).encode() + b"\n")
        self._executor.stdin.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._executor.stdin is not None
        self._executor.stdin.close()
        self._executor.wait()


def main() -> None:
    """Read it, then do it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # of whoever ends the program: the pipe says when
    handles, folders, commands = list[int](), set[str](), list[tuple[list[str], dict[str, str]]]()
    for line in sys.stdin.buffer:
        what, whom = json.loads(line)
        if what == "remove":
            folders.add(whom)
        elif what == "keep":
            folders.discard(whom)
        elif what == "run":
            commands.append((whom[0], whom[1]))
        else:
            for handle in [handle for handle in handles if readable(handle, 0)]:  # ended meanwhile
                handles.remove(handle)
                os.close(handle)
            with contextlib.suppress(ProcessLookupError):
                handles.append(os.pidfd_open(whom))
    for handle in handles:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
    for handle in handles:
        readable(handle, END_S)
    for command, environ in commands:
        subprocess.run(command, env=environ, check=False, capture_output=True)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
