"""Requests that end only when what they follow does: events, a log, a session, the end of a sandbox.

When aiohttp ends it waits for all requests. For these it would wait in vain, also where the client has left: nothing
tells that to a handler that has nothing to write. So they are ended with the node, at once; the others have their time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Following:
    """The requests of one node that follow something now."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[object]] = set()

    def follows(self, handler: Handler) -> Handler:
        """Of a route whose requests end with the node."""

        async def follow(request: web.Request) -> web.StreamResponse:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            try:
                return await handler(request)
            finally:
                self._tasks.discard(task)

        return follow

    def end(self) -> None:
        """Their connections break, as a client sees it that finds the next node by itself."""
        for task in self._tasks:
            task.cancel()
