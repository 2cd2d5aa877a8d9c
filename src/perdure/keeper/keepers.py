"""The keepers of one below-line folder: those that live are watched, and what those that died left is cleaned up."""

from __future__ import annotations

import os
import socket
import sys

from perdure.keeper.folder import Below
from perdure.keeper.loop import READ, Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from perdure.linux.cgroup import Cgroup
    from perdure.linux.process import Process

_LEAVE_TIMEOUT_S = 2.0
_KILL_TIMEOUT_S = 5.0
_CGROUP_RETRY_S = 0.05
_CGROUP_RETRIES = 200


class Keepers:
    """By sandbox. ``cgroups``: the folder of their cgroups, each named after its sandbox."""

    def __init__(self, loop: Loop, below: Below) -> None:
        self.cgroups = f"perdure-{os.path.basename(below.path)}"
        self._loop, self._below = loop, below
        self._kept: dict[str, Process] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def adopt(self) -> None:
        """Find the keepers that an earlier launcher forked, and clean up after those that died."""
        for sandbox in self._below.sandboxes():
            if sandbox not in self._kept and not self._find(sandbox):
                self._clean(sandbox, "the keeper died while no launcher watched it")

    def watch(self, sandbox: str, keeper: Process) -> None:
        """From now on: it was just forked, or found."""
        self._kept[sandbox] = keeper
        self._loop.watch(keeper.pidfd, READ, lambda _mask: self._look(sandbox))

    def report(self) -> list[dict[str, Any]]:
        """All that live, and the records of those that died and were not forgotten."""
        self.adopt()
        for sandbox in list(self._kept):
            self._look(sandbox)
        found: list[dict[str, Any]] = []
        for sandbox in self._below.sandboxes():
            if sandbox in self._kept:
                found.append({"sandbox": sandbox, "alive": True, "pid": self._kept[sandbox].pid})
            else:
                record = self._below.machine(sandbox).read_exit()
                found.append({"sandbox": sandbox, "alive": False, "exit": record})
        return found

    def lives(self, sandbox: str) -> bool:
        self._look(sandbox)
        return sandbox in self._kept or self._find(sandbox)

    def stays(self, sandbox: str) -> bool:
        """Whether a keeper lives that is not about to leave: one without node and machine ends in a moment."""
        if self.lives(sandbox):
            self._loop.run_until(lambda: sandbox not in self._kept, _LEAVE_TIMEOUT_S)
        return self.lives(sandbox)

    def kill(self, sandbox: str) -> bool:
        """End a keeper that answers nobody: its machine dies with it, and the network of both. False: it lives on."""
        if self.lives(sandbox):
            self._kept[sandbox].kill()
            self._loop.run_until(lambda: sandbox not in self._kept, _KILL_TIMEOUT_S)
        return not self.lives(sandbox)

    def _find(self, sandbox: str) -> bool:
        """Watch a living keeper that is not ours yet; False: none lives."""
        from perdure.linux.process import Process

        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(self._below.machine(sandbox).control)
                credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
                pid = int.from_bytes(credentials[:4], sys.byteorder)  # struct ucred: who called listen(2)
                self.watch(sandbox, Process(pid))
            except OSError:
                return False
        return True

    def _look(self, sandbox: str) -> None:
        """Clean up after a keeper if it has ended."""
        keeper = self._kept.get(sandbox)
        if keeper is None or (status := keeper.poll()) is None:
            return
        self._loop.forget(keeper.pidfd)
        keeper.close()
        del self._kept[sandbox]
        self._clean(sandbox, f"the keeper was killed by signal {-status}" if status < 0 else "the keeper ended")

    def _clean(self, sandbox: str, how: str) -> None:
        """Kill and remove what a dead keeper left. Its children die with it anyway; the cgroup takes any other."""
        from perdure.linux.cgroup import Cgroup

        cgroup = Cgroup.find(f"{self.cgroups}/{sandbox}")
        if cgroup is not None:
            cgroup.kill()
            self._remove_cgroup(cgroup, _CGROUP_RETRIES)
        folder = self._below.machine(sandbox)
        if not os.path.isdir(folder.path):
            return  # it ended as it was told to
        if folder.read_exit() is None:
            folder.record_exit("keeper-died", how)
        folder.clear(keep_record=True)

    def _remove_cgroup(self, cgroup: Cgroup, tries: int) -> None:
        if not cgroup.remove() and tries:
            self._loop.after(_CGROUP_RETRY_S, lambda: self._remove_cgroup(cgroup, tries - 1))
