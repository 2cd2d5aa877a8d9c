"""The way out of the guest for coroutines: the twin of ``door``."""

from __future__ import annotations

import asyncio
import json

from perdure.agent import calls, http1
from perdure.agent.door import address, retry_s, url

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from typing import Any


class AsyncDoor:
    """Carries calls. See ``Door``."""

    async def call(self, lane: calls.Lane, name: str, body: Any, ordinal: int | None = None) -> Any:
        """The twin of ``Door.call``."""
        ordinal = lane.take() if ordinal is None else ordinal
        data = json.dumps(body).encode()
        failures = 0
        while True:
            reader = http1.AnswerReader()
            try:
                pieces = [piece async for piece in self.stream(reader, calls.BASE + name, lane, ordinal, data)]
                return calls.answer(reader.status, b"".join(pieces))
            except OSError:
                failures += 1
                await asyncio.sleep(retry_s(failures))

    def url(self) -> str:
        """See ``Door.url``."""
        return url()

    async def stream(
        self, reader: http1.AnswerReader, path: str, lane: calls.Lane, ordinal: int, body: bytes
    ) -> AsyncIterator[bytes]:
        """Send once; the pieces of the body as they arrive. OSError when it breaks before its end."""
        place = address()
        opening = asyncio.open_unix_connection(place) if isinstance(place, str) else asyncio.open_connection(*place)
        incoming, outgoing = await opening
        try:
            outgoing.write(http1.request(path, lane.name, ordinal, body))
            await outgoing.drain()
            while not reader.done:
                for piece in reader.feed(await incoming.read(65536)):
                    yield piece
        finally:
            outgoing.close()
