"""Whose turn it is at one sandbox: one at a time moves it, or looks at it while it must not move.

Who looks may be slow: a client that reads what it sees may stop to read at all. So whoever wants to move it waits for
who looks only so long.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Literal

from perdure.errors import Conflict

LOOK_S = 5.0  # that who looks has left once somebody waits


class Moving(asyncio.Lock):
    """Held by who moves the sandbox. ``looking``, then ``giving_way``: by who looks."""

    def __init__(self) -> None:
        super().__init__()
        self._wanted = 0  # by so many who want to move it
        self._look: asyncio.Timeout | None = None

    async def acquire(self) -> Literal[True]:
        self._wanted += 1
        self._hurry()
        try:
            return await super().acquire()
        finally:
            self._wanted -= 1

    @contextlib.asynccontextmanager
    async def looking(self) -> AsyncIterator[None]:
        """It does not move meanwhile; others who look come later."""
        await super().acquire()
        try:
            yield
        finally:
            self.release()

    @contextlib.asynccontextmanager
    async def giving_way(self) -> AsyncIterator[None]:
        """Within ``looking``: what may take as long as somebody else pleases. It ends LOOK_S after somebody wants to
        move it. Raises Conflict then."""
        limit = asyncio.timeout(None)
        try:
            async with limit:
                self._look = limit
                if self._wanted:
                    self._hurry()
                try:
                    yield
                finally:
                    self._look = None
        except TimeoutError:
            if not limit.expired():
                raise
            raise Conflict("the look at it has ended, as somebody wanted to move it", hint="Try it again.") from None

    def _hurry(self) -> None:
        if self._look is not None and self._look.when() is None:
            self._look.reschedule(asyncio.get_running_loop().time() + LOOK_S)
