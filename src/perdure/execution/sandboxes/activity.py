"""Whether anybody is at a sandbox: what decides when an idle one is put to sleep (``Sandbox.suspend_idle``).

Who uses a sandbox says so: ``busy`` for as long as it lasts (an exec, a copy, a connection to a published port),
``touched`` for what is over at once. The guest's own work is not told here: the node looks at its CPU time.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator


class Activity:
    """Of one sandbox. ``clock`` in seconds, never going back. For the event loop's thread alone."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._under_way = 0
        self._last = clock()

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """The sandbox is in use until the end of the ``with``; these may overlap."""
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            self.touched()

    def touched(self) -> None:
        """It was in use just now."""
        self._last = self._clock()

    @property
    def is_busy(self) -> bool:
        return self._under_way > 0

    @property
    def idle_s(self) -> float:
        """For how long nobody has used it; 0 while somebody does."""
        return 0.0 if self.is_busy else self._clock() - self._last
