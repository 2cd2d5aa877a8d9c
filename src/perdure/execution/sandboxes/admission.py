"""Whether one more machine fits on the node: the sum of what running sandboxes may use, and how many they are.

A guest takes memory from the host page by page, as it touches it, and shares its template's pages with others. So the
limits of running sandboxes may add up to more than the host has: ``overcommit`` times it. What does not fit is refused
before anything is begun; else the kernel would end somebody's machine when memory runs out, and nobody chooses whose.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from perdure.errors import NoRoom

MEMORY_OVERCOMMIT = 4.0
MACHINES_MAX = 1000


@dataclass(frozen=True)
class Limits:
    """``memory_mib``: what all running sandboxes together may use; 0: ``overcommit`` times the host's memory."""

    memory_mib: int = 0
    overcommit: float = MEMORY_OVERCOMMIT
    machines_max: int = MACHINES_MAX


class Admission:
    """``live``: memory in MiB by the id of each sandbox that has a machine, or is about to have one."""

    def __init__(self, live: Callable[[], Mapping[str, int]] = dict, limits: Limits | None = None) -> None:
        self._live = live
        self._limits = limits or Limits()
        self._admitted: dict[str, int] = {}  # what is about to become live

    @contextlib.contextmanager
    def room(self, sandbox_id: str, memory_mib: int, host_bytes: int) -> Iterator[None]:
        """Room for a machine of this sandbox, held until the end of the ``with``: by then it is live, or never will be.

        ``host_bytes``: the memory of the host that it is to run on; 0: not known yet. Raises NoRoom.
        """
        self.check({sandbox_id: memory_mib}, host_bytes)
        self._admitted[sandbox_id] = memory_mib
        try:
            yield
        finally:
            self._admitted.pop(sandbox_id, None)

    def check(self, wanted: Mapping[str, int], host_bytes: int) -> None:
        """Raises NoRoom unless machines of these (MiB by id) fit, all of them."""
        live = self._live()
        if wanted.keys() <= live.keys():
            return  # they have one, which makes room for the next
        others = {each: mib for each, mib in {**self._admitted, **live}.items() if each not in wanted}
        what = "a sandbox" if len(wanted) == 1 else f"{len(wanted)} sandboxes"
        machines_max = self._limits.machines_max
        if len(others) + len(wanted) > machines_max:
            raise NoRoom(
                f"{what} more would be {len(others) + len(wanted)} running ones, and this node runs at most "
                f"{machines_max}",
                hint="Suspend or stop others (fcrun ps), or raise machines_max in [node] of settings.toml.",
                running=len(others),
                machines_max=machines_max,
            )
        memory_mib = self.memory_mib(host_bytes)
        needed_mib, used_mib = sum(wanted.values()), sum(others.values())
        if memory_mib and used_mib + needed_mib > memory_mib:
            raise NoRoom(
                f"{what} of {needed_mib} MiB of memory does not fit: {max(0, memory_mib - used_mib)} of {memory_mib} "
                f"MiB are free, {len(others)} running ones have the rest",
                hint="Suspend or stop others (fcrun ps), give it less (fcrun run -m), or raise memory_overcommit in "
                "[node] of settings.toml.",
                needed_mib=needed_mib,
                free_mib=max(0, memory_mib - used_mib),
                memory_mib=memory_mib,
            )

    def memory_mib(self, host_bytes: int) -> int:
        """What all running sandboxes together may use; 0: not known."""
        return self._limits.memory_mib or int((host_bytes >> 20) * self._limits.overcommit)
