"""How much a provider is asked at once, and in a minute. Who is too many waits here, and nothing is refused for it.

Runs take turns: each has a line of its own, and the lines are served one after the other, so a run that asks for a
thousand things holds up another one by one of them. What is at the front of all goes first, even where something
smaller behind it would fit. A minute is the last sixty seconds, whenever one looks: in none of them does more begin.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

MINUTE_S = 60.0


@dataclass(frozen=True)
class Limits:
    """0: none. ``tokens_per_minute`` counts what a request may be by its size, and what it was once that is known."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    concurrent: int = 0


@dataclass
class _Begun:
    """A request of the last minute."""

    name: str
    at: float
    tokens: int


@dataclass
class _Waiter:
    name: str
    tokens: int
    turn: asyncio.Future[None]


class Limiter:
    """Of one provider, on one event loop."""

    def __init__(self, limits: Limits, minute_s: float | None = None) -> None:
        self._limits = limits
        self._minute_s = MINUTE_S if minute_s is None else minute_s
        self._lines: dict[str, deque[_Waiter]] = {}  # by run, in the order in which they are served
        self._begun: deque[_Begun] = deque()
        self._by_name: dict[str, _Begun] = {}
        self._tokens = 0  # of those that begun
        self._running = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """Who has not left."""
        return sum(not waiter.turn.cancelled() for line in self._lines.values() for waiter in line)

    @asynccontextmanager
    async def turn(self, run_id: str, name: str, tokens: int) -> AsyncIterator[float]:
        """While a request is on its way; seconds that it waited. name: of its call. tokens: a guess."""
        loop = asyncio.get_running_loop()
        since, waiter = loop.time(), _Waiter(name, tokens, loop.create_future())
        self._lines.setdefault(run_id, deque()).append(waiter)
        self._serve()
        try:
            await waiter.turn
        except asyncio.CancelledError:
            if waiter.turn.cancelled():
                self._serve()  # what was behind it may fit
            else:
                self._end()  # it was let go at the same moment
            raise
        try:
            yield loop.time() - since
        finally:
            self._end()

    def used(self, name: str, tokens: int) -> None:
        """What the newest request of a call has really been."""
        if (begun := self._by_name.get(name)) is not None:
            self._tokens += tokens - begun.tokens
            begun.tokens = tokens
            self._serve()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _end(self) -> None:
        self._running -= 1
        self._serve()

    def _serve(self) -> None:
        """Let go whoever may, in order."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = asyncio.get_running_loop().time()
        while self._begun and self._begun[0].at + self._minute_s <= now:
            old = self._begun.popleft()
            self._tokens -= old.tokens
            if self._by_name.get(old.name) is old:
                del self._by_name[old.name]
        while self._lines:
            run_id, line = next(iter(self._lines.items()))
            waiter = line[0]
            if waiter.turn.cancelled():
                self._pass(run_id, line, is_served=False)
                continue
            if self._limits.concurrent and self._running >= self._limits.concurrent:
                return  # the end of one of them serves the next
            if not self._has_room(waiter.tokens):
                self._timer = asyncio.get_running_loop().call_at(self._begun[0].at + self._minute_s, self._serve)
                return
            self._pass(run_id, line, is_served=True)
            self._begin(waiter, now)

    def _pass(self, run_id: str, line: deque[_Waiter], *, is_served: bool) -> None:
        """Whoever is at the front of a line has left it; who was served lets the other lines go first."""
        line.popleft()
        if is_served or not line:
            del self._lines[run_id]
            if line:
                self._lines[run_id] = line

    def _has_room(self, tokens: int) -> bool:
        most = self._limits.requests_per_minute
        if most and len(self._begun) >= most:
            return False
        most = self._limits.tokens_per_minute
        return not most or not self._begun or self._tokens + tokens <= most  # one that is too large goes alone

    def _begin(self, waiter: _Waiter, now: float) -> None:
        self._running += 1
        if self._limits.requests_per_minute or self._limits.tokens_per_minute:
            begun = self._by_name[waiter.name] = _Begun(waiter.name, now, waiter.tokens)
            self._begun.append(begun)
            self._tokens += begun.tokens
        waiter.turn.set_result(None)
