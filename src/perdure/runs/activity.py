"""What one run's program does now, as far as its calls tell: it decides whether the machine may sleep, or be captured.

All of it is of this server: the next one hears of what is open again, because guests ask until they are answered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from perdure.model import Call, RunState
from perdure.runs.clock import Clock


class Activity:
    """Of one run. ``changed`` is called with everything that begins or ends."""

    def __init__(self, changed: Callable[[], None], clock: Clock) -> None:
        self._changed = changed
        self._clock = clock
        self.thinking: dict[str, tuple[Call, int]] = {}  # model calls of which no byte comes now, with their branch
        self.speaking = 0  # model calls whose answers are on their way
        self.pausing = 0  # those that think in the middle of their answers
        self.turns = 0  # answered since the last snapshot
        self._ran_s = 0.0  # since the last snapshot, but for now
        self._running_since: float | None = None

    @contextmanager
    def asking(self, call: Call, branch: int) -> Iterator[None]:
        """A model was asked; until the first byte of its answer it thinks."""
        self.thinking[call.key] = (call, branch)
        self._changed()
        try:
            yield
        finally:
            self.thinking.pop(call.key, None)
            self._changed()

    @contextmanager
    def hearing(self) -> Iterator[None]:
        """A model's answer is on its way: the machine is neither suspended nor captured meanwhile."""
        self.speaking += 1
        try:
            yield
        finally:
            self.speaking -= 1
            self._changed()

    def pause(self, call: Call, branch: int) -> None:
        """A model says nothing in the middle of its answer, of which the machine has as much as ``call.offset``."""
        self.speaking, self.pausing = self.speaking - 1, self.pausing + 1
        self.thinking[call.key] = (call, branch)
        self._changed()

    def go_on(self, call: Call) -> None:
        """It says more, or nobody listens any more."""
        self.speaking, self.pausing = self.speaking + 1, self.pausing - 1
        self.thinking.pop(call.key, None)
        self._changed()

    def moved(self, state: RunState) -> None:
        """The run is in this state now."""
        self._ran_s, self._running_since = self.ran_s, self._clock.monotonic() if state is RunState.RUNNING else None

    def captured(self) -> None:
        """There is a snapshot of it."""
        self.turns, self._ran_s = 0, 0.0
        self._running_since = None if self._running_since is None else self._clock.monotonic()

    @property
    def ran_s(self) -> float:
        """Seconds that the program was running, and not parked, since the last snapshot."""
        return self._ran_s + (0.0 if self._running_since is None else self._clock.monotonic() - self._running_since)
