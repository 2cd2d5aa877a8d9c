"""One cgroup v2 per keeper, so that everything it started can be killed at once (cgroups(7), cgroup.kill), and limited
as one (the kernel's admin-guide/cgroup-v2)."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = "/sys/fs/cgroup"
_CONTROLLERS = ("memory", "pids", "cpu")
_PERIOD_US = 100_000


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
        parent = ROOT
        for part in name.split("/"):
            Cgroup(parent)._enable()
            parent = f"{parent}/{part}"
        return Cgroup(path)

    @staticmethod
    def own() -> Cgroup | None:
        """The one that this process is in, unless that is the root of all."""
        with open("/proc/self/cgroup", encoding="ascii", errors="replace") as file:
            for line in file:
                number, _, path = line.rstrip("\n").split(":", 2)
                if number == "0" and path != "/":
                    return Cgroup(f"{ROOT}{path}")
        return None

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

    def limit(self, *, memory_bytes: int, processes: int, cpus: float = 0.0) -> list[str]:
        """Let it have no more than so much memory (and nothing swapped out), processes and threads, and time: as of so
        many processors, 0: all. Gives the limits that this kernel refuses: a controller may be missing or not ours."""
        limits = {"memory.max": str(memory_bytes), "memory.swap.max": "0", "pids.max": str(processes)}
        limits["cpu.max"] = f"{max(1000, round(cpus * _PERIOD_US))} {_PERIOD_US}" if cpus else f"max {_PERIOD_US}"
        refused = []
        for name, value in limits.items():
            try:
                self._write(name, value)
            except OSError:
                refused.append(name)
        return refused

    def remove(self) -> bool:
        """False while processes are still in it."""
        try:
            os.rmdir(self.path)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True

    def _enable(self) -> None:
        """What limits need in the cgroups below this one; each for itself, as any may be missing."""
        try:
            with open(f"{self.path}/cgroup.subtree_control", encoding="ascii") as file:
                enabled = file.read().split()
        except OSError:
            return
        for controller in _CONTROLLERS:
            if controller not in enabled:
                try:
                    self._write("cgroup.subtree_control", f"+{controller}")
                except OSError:
                    pass

    def _write(self, name: str, text: str) -> None:
        fd = os.open(f"{self.path}/{name}", os.O_WRONLY)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
