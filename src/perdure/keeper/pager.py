"""The keeper's side of the pager: a forked child that serves page faults, and the lines of JSON that it reports.

The child runs ``execution.snapshots.pager.serve``, which describes those lines. A pager that dies while its machine
lives would freeze it for ever, so its end is watched like Firecracker's.
"""

from __future__ import annotations

import json
import os
import socket

from perdure.errors import PerdureError
from perdure.execution.machine.configuration import PAGER_PATH
from perdure.keeper.loop import READ, Loop, Stream
from perdure.linux import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_STAT_TIMEOUT_S = 5.0
_LINE_MAX = 16 << 20


class Pager:
    """One running pager. ``on_end(detail)`` is called when it ends before ``close``; empty: its peer ended first."""

    def __init__(self, loop: Loop, map_path: str, template: str | None, on_end: Callable[[str], None]) -> None:
        """Fork it; it serves whoever connects to ``PAGER_PATH`` in the working directory. Raises OSError."""
        self._loop, self._on_end = loop, on_end
        self._lines = bytearray()
        self.failure: dict[str, Any] = {}  # why it failed, as an error's JSON
        self.report: dict[str, Any] = {}  # its newest "stat"
        self._answers = 0
        with socket.socket(socket.AF_UNIX) as listener:
            if os.path.exists(PAGER_PATH):
                os.unlink(PAGER_PATH)
            listener.bind(PAGER_PATH)
            listener.listen(1)
            ours, theirs = socket.socketpair()
            with theirs:
                self.process = process.fork(
                    lambda: _serve(listener, map_path, theirs, template), keep=(listener.fileno(), theirs.fileno())
                )
        self._stream = Stream(loop, ours.detach(), self._heard, lambda: None)
        loop.watch(self.process.pidfd, READ, self._ended)

    def stat(self) -> dict[str, Any]:
        """Ask for its figures; the newest that it gave when it does not answer."""
        before = self._answers
        if not self._stream.closed:
            self._stream.write(b'{"op":"stat"}\n')
            self._loop.run_until(lambda: self._answers > before or self._stream.closed, _STAT_TIMEOUT_S)
        return self.report

    def close(self) -> None:
        """Kill it and forget it."""
        self._loop.forget(self.process.pidfd)
        self._stream.close()
        self.process.kill()
        self.process.wait()
        self.process.close()

    def _heard(self, data: bytes) -> None:
        self._lines += data
        *lines, rest = self._lines.split(b"\n")
        self._lines = rest if len(rest) < _LINE_MAX else bytearray()
        for text in lines:
            try:
                message = json.loads(text)
            except ValueError:
                continue
            if message.get("event") == "stat":
                self.report = {name: value for name, value in message.items() if name != "event"}
                self._answers += 1
            elif message.get("event") == "failed":
                self.failure = {name: value for name, value in message.items() if name != "event"}

    def _ended(self, _mask: int) -> None:
        status = self.process.poll()
        if status is None:
            return
        self._loop.forget(self.process.pidfd)
        while not self._stream.closed and not self.failure:  # its last words may still be in the socket
            try:
                data = os.read(self._stream.fd, 1 << 16)
            except OSError:
                break
            if not data:
                break
            self._heard(data)
        ended = f"signal {-status}" if status < 0 else f"status {status}"
        self._on_end(
            "" if status == 0 else f"the pager ended with {ended}: {self.failure.get('message') or 'it gave no reason'}"
        )


def _serve(listener: socket.socket, map_path: str, report: socket.socket, template: str | None) -> None:
    from perdure.execution.snapshots import pager

    listener.setblocking(True)
    try:
        pager.serve(listener, map_path, report, template=template)
    except (PerdureError, OSError):
        raise SystemExit(1) from None  # it has reported why
