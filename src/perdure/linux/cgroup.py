"""One cgroup v2 per keeper, so that everything it started can be killed at once (cgroups(7), cgroup.kill), and limited
as one (the kernel's admin-guide/cgroup-v2)."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ROOT = "/sys/fs/cgroup"
_CONTROLLERS = ("memory", "pids", "cpu", "io")
_PERIOD_US = 100_000
_APART, _BESIDE = "apart", "beside"  # what a cgroup is parted into: only one without others below it holds processes
_MOVES_MAX = 16


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
        """The one that this process is in, unless that is the root of all; if that was parted, the whole of it."""
        with open("/proc/self/cgroup", encoding="ascii", errors="replace") as file:
            for line in file:
                number, _, path = line.rstrip("\n").split(":", 2)
                if number == "0" and path != "/":
                    return Cgroup(f"{ROOT}{path}".removesuffix(f"/{_BESIDE}"))
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

    def part(self, pids: Sequence[int]) -> Cgroup | None:
        """Move these processes of it into a cgroup of their own below it, for limits of memory and io that are only
        theirs; its own limits hold for all as before. None: this kernel has no io controller for it."""
        apart, beside = Cgroup(f"{self.path}/{_APART}"), Cgroup(f"{self.path}/{_BESIDE}")
        try:
            if "io" not in self._read("cgroup.controllers"):
                return None
            for cgroup in (apart, beside):
                os.makedirs(cgroup.path, exist_ok=True)
            for _ in range(_MOVES_MAX):  # what is started meanwhile is in it again
                if not (here := self._read("cgroup.procs")):
                    break
                for pid in here:
                    beside._move(pid)
            for number in pids:
                apart._move(str(number))
            # pages are written back as their memory is counted: io alone would not hold what was only cached
            self._write("cgroup.subtree_control", "+memory +io")
        except OSError:
            return None
        return apart

    def limit_io(self, disks: Iterable[str], *, bytes_per_s: int, ops_per_s: int) -> list[str]:
        """Let it read, and write, so much of each of these disks (``MAJOR:MINOR``); 0: all. Gives those that this
        kernel refuses."""
        size, count = str(bytes_per_s or "max"), str(ops_per_s or "max")
        refused = []
        for disk in disks:
            try:
                self._write("io.max", f"{disk} rbps={size} wbps={size} riops={count} wiops={count}")
            except OSError:
                refused.append(disk)
        return refused

    def remove(self) -> bool:
        """False while processes are still in it."""
        for name in (_APART, _BESIDE):
            try:
                os.rmdir(f"{self.path}/{name}")
            except OSError:
                pass
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
            enabled = self._read("cgroup.subtree_control")
        except OSError:
            return
        for controller in _CONTROLLERS:
            if controller not in enabled:
                try:
                    self._write("cgroup.subtree_control", f"+{controller}")
                except OSError:
                    pass

    def _move(self, pid: str) -> None:
        try:
            self._write("cgroup.procs", pid)
        except ProcessLookupError:
            pass  # it has ended

    def _read(self, name: str) -> list[str]:
        with open(f"{self.path}/{name}", encoding="ascii") as file:
            return file.read().split()

    def _write(self, name: str, text: str) -> None:
        fd = os.open(f"{self.path}/{name}", os.O_WRONLY)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
