"""The time that runs live by: the host's, or one that a test moves (``perdure.testing.clock``)."""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol


class Clock(Protocol):
    """Deadlines of waits are moments of ``time``, which may be set while somebody waits; pauses are measured by
    ``monotonic``. Both are seconds."""

    def time(self) -> float:
        """Seconds since 1970."""
        ...

    def monotonic(self) -> float:
        """Seconds since some moment; never goes back."""
        ...

    def timeout_at(self, moment: float | None) -> AbstractAsyncContextManager[Any]:
        """As ``asyncio.timeout_at``: TimeoutError at ``moment``, which is one of ``monotonic``; None: never."""
        ...

    async def sleep_until(self, moment: float) -> None:
        """Until ``monotonic`` has reached ``moment``."""
        ...


class SystemClock:
    """The host's."""

    def time(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()  # asyncio's loops go by the same one

    def timeout_at(self, moment: float | None) -> asyncio.Timeout:
        return asyncio.timeout_at(moment)

    async def sleep_until(self, moment: float) -> None:
        await asyncio.sleep(moment - time.monotonic())


SYSTEM = SystemClock()
