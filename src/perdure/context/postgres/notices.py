"""Tells other servers which runs were written to, so that who follows one there looks again.

A notification is a transaction of its own, which all others of the database that notify wait for, and wakes every
server, this one too. So what is written within a moment is told at once, and the first of it without delay.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from perdure.context.postgres.connections import Readers
from perdure.errors import PerdureError

PAUSE_S = 0.02
MAX_BYTES = 7000  # of the 8000 that a notification may have
NOTIFY = "SELECT pg_notify(%(channel)s, %(notice)s)"


class Notices:
    def __init__(self, readers: Readers, channel: str, server: str) -> None:
        """channel: that is notified with the ids of the runs, after the id of this server."""
        self.channel = channel
        self._readers, self._server = readers, server
        self._runs: dict[str, None] = {}
        self._telling: asyncio.Task[None] | None = None
        self._closed = asyncio.Event()

    def tell(self, run_ids: Iterable[str]) -> None:
        self._runs |= dict.fromkeys(run_ids)
        if self._telling is None and self._runs:
            self._telling = asyncio.create_task(self._tell(), name="context-log-notices")

    async def _tell(self) -> None:
        while self._runs:
            notice = " ".join([self._server, *self._runs])
            if len(notice.encode()) > MAX_BYTES:
                notice = f"{self._server} *"
            self._runs.clear()
            try:
                await self._readers.rows(NOTIFY, {"channel": self.channel, "notice": notice})
            except PerdureError:
                pass  # a hint: they look by themselves, a little later
            try:
                await asyncio.wait_for(self._closed.wait(), PAUSE_S)
            except TimeoutError:
                pass
        self._telling = None

    async def close(self) -> None:
        """After what is to be told was told."""
        self._closed.set()
        if self._telling is not None:
            await self._telling
