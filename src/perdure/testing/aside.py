"""What lives in an event loop, beside tests that block: it gets a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

OPENS_S = 10.0


class Opens(Protocol):
    async def open(self) -> None: ...

    async def close(self) -> None: ...


@contextmanager
def aside(made: Opens) -> Iterator[Callable[[Callable[[], Any]], Any]]:
    """Open it there, and close it; what is given does something in its thread, and returns what came of that."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def do(act: Callable[[], Any]) -> Any:
        async def done() -> Any:
            came = act()
            return await came if isinstance(came, Awaitable) else came

        return asyncio.run_coroutine_threadsafe(done(), loop).result(OPENS_S)

    do(made.open)
    try:
        yield do
    finally:
        do(made.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
