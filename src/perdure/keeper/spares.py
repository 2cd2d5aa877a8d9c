"""Keepers that were started ahead, each with an idle Firecracker and pager: the next sandbox is spared their start.

A spare lives in ``BELOW/spares/`` and is nobody's: it dies with its launcher. It becomes a sandbox's keeper when it is
handed that sandbox's connection: its folder takes the sandbox's name, and it outlives the launcher as any other.
"""

from __future__ import annotations

import os
import socket

from perdure.keeper.loop import READ, Loop
from perdure.linux import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from perdure.keeper.folder import Below
    from perdure.linux.process import Process

    Parts = tuple[str, str]  # the paths of Firecracker and of the pager

KEPT = 1
DELAY_S = 2.0  # after a spawn: first the new sandbox gets the processors, also for a suspend that follows at once
TRIES = 3  # of the same parts in a row: a Firecracker that does not start is not tried for ever


class Spares:
    """The spares of one launcher. ``be(name, parts)`` is what the forked process does; it must not return."""

    def __init__(self, loop: Loop, below: Below, be: Callable[[str, Parts], None]) -> None:
        self._loop, self._below, self._be = loop, below, be
        self._parts: Parts | None = None
        self._ready: dict[str, Process] = {}
        self._number = self._failures = 0

    def wish(self, parts: Parts) -> None:
        """From now on spares are made of these. Others are ended."""
        if parts != self._parts:
            for name in list(self._ready):
                self._drop(name, self._ready.pop(name))
            self._parts, self._failures = parts, 0
        self._loop.after(DELAY_S, self._make)

    def take(self, parts: Parts, sandbox: str, fd: int) -> Process | None:
        """Let a spare become the keeper of a sandbox, whose node is at the connection ``fd``. None: there is none."""
        while parts == self._parts and self._ready:
            name, spare = self._ready.popitem()
            with socket.socket(socket.AF_UNIX) as control:
                try:
                    control.connect(self._below.spare(name).control)
                    socket.send_fds(control, [sandbox.encode()], [fd])
                    self._failures = 0
                    self._loop.forget(spare.pidfd)
                    return spare
                except OSError:
                    self._drop(name, spare)  # it has died, or is about to
        return None

    def _drop(self, name: str, spare: Process) -> None:
        self._loop.forget(spare.pidfd)
        spare.kill()
        spare.wait()
        spare.close()
        self._below.spare(name).remove()

    def _make(self) -> None:
        if self._parts is None or len(self._ready) >= KEPT or self._failures >= TRIES:
            return
        parts, name = self._parts, f"{os.getpid()}-{self._number}"
        self._number += 1
        spare = process.fork(lambda: self._be(name, parts))
        self._ready[name] = spare
        self._loop.watch(spare.pidfd, READ, lambda _mask: self._ended(name))

    def _ended(self, name: str) -> None:
        spare = self._ready.pop(name, None)
        if spare is None:
            return
        self._drop(name, spare)
        self._failures += 1
        self._loop.after(DELAY_S, self._make)
