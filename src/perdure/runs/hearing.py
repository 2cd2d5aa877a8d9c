"""A model's answer on its way to a machine, or a host's: piece by piece, and what its run may do meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import ExitStack
from dataclasses import replace

from perdure.model import Answer, Call
from perdure.runs.asked import Asked

REFUSED = 400  # statuses from here on are no turns
PAUSE_S = 0.2  # what says nothing for so long thinks: shorter gaps are between any two words


class Hearing:
    """The body of an answer. The run counts as hearing it until its last byte was handed on, or its reader has left;
    while a model says nothing in the middle of it, as one whose model thinks.

    ``branch``: that the call to a model is of; None: it is none. ``held`` is closed at the end.
    """

    def __init__(
        self,
        asked: Asked,
        branch: int | None,
        answer: Answer,
        first: bytes,
        pieces: AsyncIterator[bytes],
        held: ExitStack,
    ) -> None:
        self._asked = asked
        self._branch = branch
        self._reached = asked.call.offset + len(first)  # of the body, handed on
        self._answer = answer
        self._first = first
        self._pieces = pieces
        self._held = held
        self._thought: Call | None = None  # as it is paused

    def __aiter__(self) -> Hearing:
        return self

    async def __anext__(self) -> bytes:
        """StaleEpoch, Unavailable: the machine was captured meanwhile; the one that goes on asks for the rest."""
        first, self._first = self._first, b""
        if first:
            return first
        try:
            piece = await (anext(self._pieces) if self._branch is None else self._next(self._branch))
        except StopAsyncIteration:
            self._asked.run.activity.turns += self._branch is not None and self._answer.status < REFUSED
            self._held.close()
            raise
        except BaseException:
            self._held.close()
            raise
        self._reached += len(piece)
        return piece

    async def _next(self, branch: int) -> bytes:
        later = asyncio.get_running_loop().call_later(PAUSE_S, self._pause, branch)
        try:
            piece = await anext(self._pieces, None)
        finally:
            later.cancel()
            thought, self._thought = self._thought, None
            if thought is not None:
                self._asked.run.activity.go_on(thought)
        if thought is not None:
            await self._asked.run.admit(thought.epoch)  # nothing is answered while the machine is being captured
        if piece is None:
            raise StopAsyncIteration
        return piece

    def _pause(self, branch: int) -> None:
        self._thought = replace(self._asked.call, offset=self._reached)
        self._asked.run.activity.pause(self._thought, branch)

    async def aclose(self) -> None:
        self._held.close()
        if isinstance(self._pieces, AsyncGenerator):
            await self._pieces.aclose()  # who is asked hears that nobody listens
