"""A write of which nobody knows whether it came through, as the database went away with the answer.

Whoever asked for it was told so. What was written is seen by the next who writes to the run; but a person's answer may
be the last thing for days. So the log is read again as soon as the database answers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager

from perdure.context.log import ContextLog, Head
from perdure.errors import NotFound, PerdureError

log = logging.getLogger(__name__)

AGAIN_S = 0.5  # between two looks whether the database is back
LOOKS = 3  # at a database that answers and has no such run: a commit may end a little after its connection


async def settle_made(context: ContextLog, run_id: str, adopt: Callable[[Head], Awaitable[None]]) -> bool:
    """A run of which nobody knows whether it was made: ``adopt`` moves it along as soon as the database tells of it.
    False: it was not made."""
    looks = 0
    while True:
        await asyncio.sleep(AGAIN_S)  # the database lives by the host's clock, not by the runs'
        try:
            await adopt(await context.head(run_id))
            return True
        except NotFound:
            looks += 1
            if looks == LOOKS:
                return False
        except (PerdureError, OSError) as error:
            log.debug("run %s is not looked for yet: %s", run_id, error)


class Doubt:
    """``held``: the run stays in memory meanwhile. ``read``: reads it again; False: not now, as this server may have
    lost it."""

    def __init__(
        self, run_id: str, held: Callable[[], AbstractContextManager[None]], read: Callable[[], Awaitable[bool]]
    ) -> None:
        self._run_id = run_id
        self._held = held
        self._read = read
        self._settling: asyncio.Task[None] | None = None

    def arise(self) -> None:
        """Read it again, in the background."""
        if self._settling is None:
            self._settling = asyncio.create_task(self._settle(), name=f"doubt-{self._run_id}")

    @property
    def is_open(self) -> bool:
        """Nobody knows yet."""
        return self._settling is not None

    async def settled(self) -> None:
        """Returns once the log was read again."""
        if (settling := self._settling) is not None:
            await asyncio.wait({settling})

    async def close(self) -> None:
        """Nothing more is read."""
        if (settling := self._settling) is not None:
            settling.cancel()
            await asyncio.gather(settling, return_exceptions=True)

    async def _settle(self) -> None:
        try:
            with self._held():
                while True:
                    if await self._is_read():
                        return
                    await asyncio.sleep(AGAIN_S)  # the database lives by the host's clock, not by the runs'
        finally:
            self._settling = None

    async def _is_read(self) -> bool:
        try:
            return await self._read()
        except (PerdureError, OSError) as error:
            log.debug("run %s is not read again yet: %s", self._run_id, error)
            return False
