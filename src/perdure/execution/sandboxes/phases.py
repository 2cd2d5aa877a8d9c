"""Where the time of a use case goes: what ``inspect`` and the benchmark show."""

from __future__ import annotations

import time


class Phases:
    """A clock that is told at the end of each phase. ``times``: name + ``_s`` -> seconds, in order."""

    def __init__(self) -> None:
        self.times: dict[str, float] = {}
        self._began = self._last = time.monotonic()

    def end(self, name: str) -> None:
        """The phase that began with the end of the one before is over."""
        now = time.monotonic()
        self.times[f"{name}_s"] = round(now - self._last, 4)
        self._last = now

    def finish(self) -> float:
        """All is over: ``total_s``, which is also returned."""
        total_s = time.monotonic() - self._began
        self.times["total_s"] = round(total_s, 4)
        return total_s

    def __str__(self) -> str:
        return ", ".join(f"{name.removesuffix('_s')} {value:.3f}" for name, value in self.times.items())
