"""The keeper's side of the pager: the program that serves page faults (``pager/``), and the lines of JSON between them.

What is said: docs/design/0004-native-pager.md. A pager that dies while its machine lives would freeze it for ever, so
its end is watched like Firecracker's. It may be started before it is known what it will serve.
"""

from __future__ import annotations

import json
import os
import socket

from perdure.execution.machine.configuration import PAGER_PATH
from perdure.keeper.loop import READ, Loop, Stream
from perdure.linux import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from perdure.keeper.jail import Jail

    Frames = list[tuple[int, int]]  # (number of the layer, number of the frame in it)

_STAT_TIMEOUT_S = 5.0
_LINE_MAX = 16 << 20


class Pager:
    """One running pager. It serves whoever connects to ``PAGER_PATH`` in the jail.

    ``on_end(detail)`` is called when it ends before ``close``; empty: its peer ended first, or everything is in memory
    (then ``resident``). ``on_want(frames)``: these must be fetched into the files of their layers.
    """

    def __init__(
        self, loop: Loop, program: str, jail: Jail, on_end: Callable[[str], None], on_want: Callable[[Frames], None]
    ) -> None:
        """Start it. Raises OSError."""
        self._loop, self._jail, self._on_end, self._on_want = loop, jail, on_end, on_want
        self._lines = bytearray()
        self.failure: dict[str, Any] = {}  # why it failed, as an error's JSON
        self.report: dict[str, Any] = {}  # its newest "stat"
        self.wanted: dict[tuple[int, int], None] = {}  # frames that it waits for, in the order in which it asked
        self.resident = False
        self._answers = self._asked = 0
        with jail.listen(PAGER_PATH, 1) as listener:
            ours, theirs = socket.socketpair()
            with theirs:
                passed = (listener.fileno(), theirs.fileno())
                self.process = process.spawn(
                    [program, *map(str, passed)],
                    cwd=".",
                    env={},
                    output=2,
                    keep=passed,
                    huge_pages=False,
                    gains=False,
                )
        self._stream = Stream(loop, ours.detach(), self._heard, lambda: None)
        loop.watch(self.process.pidfd, READ, self._ended)

    def serve(self, map_path: str, template: str | None) -> None:
        """What it serves from now on. ``template``: a copy of the template's memory nearer than the map's own path.

        It opens all that as root, and is then its own user in an empty folder, before it hears of the machine.
        """
        place = {"uid": self._jail.pager_uid, "root": self._jail.empty}
        self._say({"op": "serve", "map": map_path, "template": template or "", **place})

    def ask(self) -> None:
        """Ask for its figures: it answers while others work, and ``stat`` has less to wait for."""
        if not self._stream.closed:
            self._say({"op": "stat"})
            self._asked += 1

    def stat(self) -> dict[str, Any]:
        """Its figures; the newest that it gave when it does not answer."""
        if self._answers >= self._asked:
            self.ask()
        self._loop.run_until(lambda: self._answers >= self._asked or self._stream.closed, _STAT_TIMEOUT_S)
        return self.report

    def have(self, frames: Iterable[tuple[int, int]]) -> None:
        """These frames are in their layers' files now."""
        for frame in frames:
            self.wanted.pop(frame, None)
        self._say({"op": "have", "frames": list(frames)})

    def lost(self, message: str, hint: str) -> None:
        """What it waits for cannot be fetched: it fails with this reason, and its machine ends."""
        self._say({"op": "lost", "message": message, "hint": hint})

    def populate(self) -> None:
        """Bring the whole rest in the background, then let go of the memory and end: ``resident``."""
        self._say({"op": "populate"})

    def close(self) -> None:
        """Kill it and forget it."""
        self._loop.forget(self.process.pidfd)
        self._stream.close()
        self.process.kill()
        self.process.wait()
        self.process.close()

    def _say(self, message: dict[str, Any]) -> None:
        self._stream.write(json.dumps(message).encode() + b"\n")

    def _heard(self, data: bytes) -> None:
        self._lines += data
        *lines, rest = self._lines.split(b"\n")
        self._lines = rest if len(rest) < _LINE_MAX else bytearray()
        for text in lines:
            try:
                message = json.loads(text)
            except ValueError:
                continue
            event = message.pop("event", "")
            if event == "stat":
                self.report = message
                self._answers += 1
            elif event == "failed":
                self.failure = message
            elif event == "resident":
                self.resident = True
            elif event == "want":
                frames = [(int(layer), int(number)) for layer, number in message["frames"]]
                self.wanted.update(dict.fromkeys(frames))
                self._on_want(frames)

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
