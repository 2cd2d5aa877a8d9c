"""What happened on a node, for who follows it: the newest events of this daemon's life, and those to come."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from perdure.execution.sandboxes import acting
from perdure.execution.sandboxes.logfile import Watch
from perdure.model import NodeEvent

EVENTS_KEPT = 4096


class Events:
    """Each is somebody's: who sees what belongs to them sees it."""

    def __init__(self) -> None:
        self.kept: deque[NodeEvent] = deque(maxlen=EVENTS_KEPT)  # oldest first
        self._owners: deque[str] = deque(maxlen=EVENTS_KEPT)  # whose each is
        self._count = 0
        self._happened = Watch()

    def tell(self, owner: str, kind: str, *, sandbox_id: str = "", **details: Any) -> None:
        """Record one and wake who follows."""
        self.kept.append(NodeEvent(time=time.time(), kind=kind, sandbox_id=sandbox_id, details=details))
        self._owners.append(owner)
        self._count += 1
        self._happened.notify()

    async def read(self, *, follow: bool, since: float | None, until: float | None = None) -> AsyncIterator[NodeEvent]:
        """The newest EVENTS_KEPT of this daemon's life, oldest first, then those to come, until that moment."""
        for_whom = acting.current()
        seen = 0 if since is not None or not follow else self._count
        while True:
            happened = self._happened.next
            told = list(zip(self._owners, self.kept, strict=True))
            fresh = told[max(0, len(told) - (self._count - seen)) :]
            seen = self._count
            for owner, event in fresh:
                if not for_whom.sees(owner) and not event.kind.startswith("image."):  # images are everybody's
                    continue
                if (since is None or event.time >= since) and (until is None or event.time <= until):
                    yield event
            if not follow:
                return
            if seen == self._count:
                try:
                    await asyncio.wait_for(happened.wait(), None if until is None else until - time.time())
                except TimeoutError:
                    return
