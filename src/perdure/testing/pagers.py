"""A pager program without a keeper, and the processes whose memory it serves."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from perdure.testing.faulting import Machine

DEADLINE_S = 20.0

Serve = Callable[..., AbstractContextManager["Served"]]  # what the fixture ``serve`` is


class Served:
    """A pager that serves ``map_path``, or as yet nothing, on the socket ``path``. A context manager.

    ``timeouts_ms``: how long it waits for wanted frames, and for the handshake. What it writes on stderr, above all the
    reports of sanitizers, fails the test at the end.
    """

    def __init__(
        self, program: Path, path: Path, map_path: Path | str = "", *, timeouts_ms: Sequence[int] = ()
    ) -> None:
        self.path = path
        self._machine: Machine | None = None
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(1)
            self.report, theirs = socket.socketpair()
            with theirs:
                passed = (listener.fileno(), theirs.fileno())
                argv = [str(program), *map(str, (*passed, *timeouts_ms))]
                self.process = subprocess.Popen(argv, pass_fds=passed, stderr=subprocess.PIPE)
        self.report.settimeout(DEADLINE_S)
        self._lines = self.report.makefile("rb")
        if map_path:
            self.say("serve", map=str(map_path), template="")

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._machine is not None:
            self._machine.__exit__()
        self.hang_up()
        _, errors = self.process.communicate(timeout=DEADLINE_S)
        self.path.unlink()
        assert not errors, errors.decode()

    def start(self, regions: Sequence[int]) -> None:
        """Start the machine, which connects at once; ``regions`` in blocks."""
        self._machine = Machine(str(self.path), list(regions))

    @property
    def machine(self) -> Machine:
        """The one that was started."""
        assert self._machine is not None
        return self._machine

    def hang_up(self) -> None:
        """What the end of the keeper is to the pager."""
        self._lines.close()
        self.report.close()

    def say(self, op: str, **more: Any) -> None:
        self.report.sendall(json.dumps({"op": op, **more}).encode() + b"\n")

    def said(self) -> dict[str, Any]:
        """Its next line; empty when it has ended."""
        return dict(json.loads(self._lines.readline() or b"{}"))

    def stat(self) -> dict[str, Any]:
        self.say("stat")
        return self.said()

    def settled(self, done: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Its figures, once they are so: a page is in the machine a moment before it is counted."""
        deadline = time.monotonic() + DEADLINE_S
        while not done(figures := self.stat()):
            assert time.monotonic() < deadline, figures
        return figures

    def ended(self) -> int:
        """Its exit status."""
        return self.process.wait(DEADLINE_S)


class Peer:
    """``pager/tests/peer.c``, which says what it can be asked: a machine of many threads. A context manager."""

    def __init__(self, program: Path, path: Path, blocks: int) -> None:
        argv = [str(program), str(path), str(blocks)]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.tell("connect")

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.communicate()

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def ask(self, line: str) -> str:
        self.tell(line)
        return self.answer()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


def fnv(data: bytes) -> str:
    """What a peer answers to ``sum``."""
    found = 14695981039346656037
    for byte in data:
        found = (found ^ byte) * 1099511628211 & 0xFFFFFFFFFFFFFFFF
    return f"{found:016x}"
