"""One cgroup v2 per keeper, so that everything it started can be killed at once (cgroups(7), cgroup.kill)."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = "/sys/fs/cgroup"


class Cgroup:
    """A cgroup below ``ROOT``. Where cgroup v2 is not mounted there, or not ours to write, ``make`` gives None."""

    def __init__(self, path: str) -> None:
        self.path = path

    @staticmethod
    def make(name: str) -> Cgroup | None:
        """The cgroup ROOT/``name``, made with its parents."""
        path = f"{ROOT}/{name}"
        try:
            if not os.path.exists(f"{ROOT}/cgroup.controllers"):
                return None
            os.makedirs(path, exist_ok=True)
        except OSError:
            return None
        return Cgroup(path)

    @staticmethod
    def find(name: str) -> Cgroup | None:
        """The cgroup ROOT/``name`` if it is there."""
        path = f"{ROOT}/{name}"
        return Cgroup(path) if os.path.exists(f"{path}/cgroup.procs") else None

    def enter(self, pids: Sequence[int] = (0,)) -> bool:
        """Move processes in (0: this one). False: the kernel refused."""
        try:
            for pid in pids:
                self._write("cgroup.procs", str(pid))
        except OSError:
            return False
        return True

    def kill(self) -> None:
        """SIGKILL to every process in it (Linux 5.14)."""
        try:
            self._write("cgroup.kill", "1")
        except OSError:
            pass  # an older kernel: parent-death signals do the same, a moment later

    def remove(self) -> bool:
        """False while processes are still in it."""
        try:
            os.rmdir(self.path)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True

    def _write(self, name: str, text: str) -> None:
        fd = os.open(f"{self.path}/{name}", os.O_WRONLY)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
