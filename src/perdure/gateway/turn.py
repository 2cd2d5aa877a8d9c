"""One model call in flight: bytes that arrive once and are read by any number of askers, each from its own offset."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

from perdure.context.log import request_hash
from perdure.model import Budget, Call


class Turn:
    """The answer of one call as it comes in.

    It lives for as long as its provider answers, whoever listens: a guest that dies cancels nothing. What is added is
    seen once it is shown; all of it at the end.
    """

    def __init__(self, call: Call, budget: Budget | None = None) -> None:
        self.call = call  # that began it
        self.budget = budget or Budget()  # of its run, then
        self.epoch = call.epoch  # the newest that asked
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.lost = False  # an earlier server streamed a part of it and died: that answer exists nowhere
        self.task: asyncio.Task[None] | None = None
        self._body = bytearray()
        self._visible = 0
        self._begun = asyncio.Event()
        self._ended = False
        self._failure: Exception | None = None
        self._changed = asyncio.Event()

    def is_of(self, call: Call) -> bool:
        """Whether it answers what this call asks. Another one under its key is that of a program that went another
        way, whose run goes on live on the same branch."""
        mine = self.call
        is_same = (call.path, call.method) == (mine.path, mine.method) and call.body == mine.body
        return is_same or request_hash(call) == request_hash(mine)

    @property
    def body(self) -> bytes:
        return bytes(self._body)

    @property
    def visible(self) -> bytes:
        """What readers may have seen."""
        return bytes(self._body[: self._visible])

    @property
    def size(self) -> int:
        return len(self._body)

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Status and headers are known: askers get their answer now."""
        self.status, self.headers = status, headers
        self._begun.set()

    def add(self, piece: bytes) -> None:
        self._body += piece

    def show(self, size: int) -> None:
        """So many bytes from the beginning may be seen."""
        if size > self._visible:
            self._visible = size
            self._wake()

    def cut(self, size: int) -> None:
        """Nothing is seen of what came after so many bytes."""
        del self._body[size:]

    def end(self) -> None:
        """Everything came, and (where it was a turn) it is in the log."""
        self._visible = len(self._body)
        self._ended = True
        self._wake()

    def break_off(self, event: bytes) -> None:
        """It broke in the middle: what was held back is dropped, ``event`` tells the reader."""
        del self._body[self._visible :]
        self._body += event
        self.end()

    def fail(self, error: Exception) -> None:
        """Nobody can be answered: every asker gets ``error``."""
        self._failure = error
        self._ended = True
        self._begun.set()
        self._wake()

    def lose(self) -> None:
        self.lost = True
        self._ended = True
        self._begun.set()
        self._wake()

    @property
    def is_over(self) -> bool:
        return self._ended

    @property
    def has_begun(self) -> bool:
        return self._begun.is_set()

    async def begun(self) -> None:
        """Wait for status and headers. Raises what ``fail`` was given."""
        await self._begun.wait()
        if self._failure is not None:
            raise self._failure

    async def read(self, offset: int) -> AsyncIterator[bytes]:
        """The body from ``offset`` (bytes) on, as it arrives."""
        while True:
            if offset < self._visible:
                piece = bytes(memoryview(self._body)[offset : self._visible])
                offset += len(piece)
                yield piece
            elif self._ended:
                if self._failure is not None:
                    raise self._failure  # not an end: who carries the answer is to ask again
                return
            else:
                await self._changed.wait()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
