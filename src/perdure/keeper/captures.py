"""The captures of one machine: one at a time is made, waits in tmpfs, and is collected into a folder."""

from __future__ import annotations

from perdure.errors import MachineFailed
from perdure.keeper.collector import CAPTURED, Collector, Ground
from perdure.keeper.jail import remove
from perdure.keeper.loop import Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_LEAVING_TIMEOUT_S = 30.0


class Captures:
    """What is known of a machine's captures. A capture that cannot be collected costs the next one all memory."""

    def __init__(self, loop: Loop) -> None:
        self.place = "."  # the folder in which Firecracker writes
        self._loop = loop
        self._diff_lost = False  # a diff was taken from Firecracker and not kept: the next capture needs all memory
        self._holes_are_zeros = False  # of the capture that waits to be collected
        self._collector: Collector | None = None  # of the capture that is made, or waits to be collected
        self._leaving: Collector | None = None  # it may hold the memory of a capture that was removed

    @property
    def is_waiting(self) -> bool:
        """Whether there is a capture to collect."""
        return self._collector is not None

    def begin_anew(self) -> None:
        """Another machine has come up: no diff of it was lost."""
        self._diff_lost = False

    def take(self, wanted: str, program: str, ground: Ground | None, create: Callable[[str], None]) -> str:
        """Make a capture of a paused machine; its kind. It replaces one that waits.

        ``wanted``: "full" or "diff". ``create(kind)`` lets Firecracker write ``CAPTURED``; meanwhile the collector
        ``program`` starts. Raises what ``create`` does, MachineFailed; then no capture waits.
        """
        kind = "full" if self._diff_lost else wanted
        self.forget()
        self._take_room_back()
        starting = self._loop.after(0, lambda: self._start_collector(program, ground, early=True))
        try:
            self._diff_lost = True
            create(kind)
            self._start_collector(program, ground)
        except BaseException:
            self.forget()
            raise
        finally:
            self._loop.cancel(starting)
        # what was asked for decides what a hole means: in a diff it is as before, and a full one that stands in for a
        # lost diff has none
        self._holes_are_zeros = wanted == "full"
        return kind

    def collect(self, folder: str) -> int:
        """Make ``state`` and ``memory`` in a folder of the capture that waits; their bytes. No capture waits then."""
        assert self._collector is not None
        try:
            size = self._collector.collect(folder, holes_are_zeros=self._holes_are_zeros, place=self.place)
            self._diff_lost = False
        finally:
            self.forget()
        return size

    def forget(self) -> None:
        """Remove the capture that waits, if one does."""
        remove(*(f"{self.place}/{name}" for name in CAPTURED))
        if self._collector is not None:
            self._collector.close()
            self._leaving, self._collector = self._collector, None

    def _take_room_back(self) -> None:
        """A machine's folder has room for one capture of all its memory, and a collector maps its own until it ends."""
        if self._leaving is not None:
            self._loop.run_until(lambda: self._leaving is None or self._leaving.is_gone, _LEAVING_TIMEOUT_S)
            self._leaving = None

    def _start_collector(self, program: str, ground: Ground | None, *, early: bool = False) -> None:
        try:
            self._collector = self._collector or Collector(self._loop, program, ground)
        except OSError as error:
            if not early:  # else it is tried again
                raise MachineFailed(f"the collector {program} cannot be started: {error.strerror}") from error
