"""The way out of a worker for coroutines: the twin of ``door``.

Tasks run side by side, and which of two answers came first may have mattered. So recorded answers are handed out in
the order in which they came when they were first lived through: one at a time, and the next only when all tasks have
gone as far as they get without it.
"""

from __future__ import annotations

import asyncio
import heapq
import json
from collections.abc import AsyncIterator
from typing import Any

from perdure.agent import calls, http1
from perdure.agent.asyncdoor import AsyncDoor
from perdure.agent.door import retry_s
from perdure.replay.book import Recorded
from perdure.replay.door import Reader
from perdure.replay.wire import check, keeps

QUIET_TURNS = 5  # of the loop with no new call: a task that ends wakes who gathers it, who wakes who waits for that


class AsyncReplayDoor(AsyncDoor):
    """See ``agent.asyncdoor.AsyncDoor``."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._wire = reader.wire
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._lanes: set[str] = set()  # that have asked
        # Recorded answers that are to be handed out: by seq, and as they were asked (a wait that was withdrawn has the
        # seq of that).
        self._due: list[tuple[int, int, asyncio.Future[None]]] = []
        self._asked = 0
        self._telling = 0  # turns of a model whose answers the server tells just now
        self._handing: asyncio.Task[None] | None = None

    def url(self) -> str:
        return self._reader.url()

    async def call(self, lane: calls.Lane, name: str, body: Any, ordinal: int | None = None) -> Any:
        ordinal = lane.take() if ordinal is None else ordinal
        asked = self._reader.look(lane.name, ordinal, name, body)
        self._asked += 1
        if asked.recorded is not None and asked.recorded.answer is not None:
            await self._in_turn(lane.name, asked.recorded)
            self._reader.hear(asked.recorded)
            return asked.recorded.answer
        request = self._wire.request(asked.lane, asked.ordinal, calls.BASE + name, json.dumps(body).encode())
        failures = 0
        while True:
            reader = http1.AnswerReader()
            try:
                content = b"".join([piece async for piece in self._send(reader, request)])
                return calls.answer(reader.status, content)
            except OSError:
                failures += 1
                await asyncio.sleep(retry_s(failures))

    async def _in_turn(self, lane: str, call: Recorded) -> None:
        """Until it is this answer's turn. At once as long as nobody runs beside the only lane."""
        self._lanes.add(lane)
        if len(self._lanes) == 1 and len(asyncio.all_tasks()) == 1:
            return
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._due, (call.end, self._asked, turn))
        if self._handing is None:
            # Not by the loop's factory: it takes no lane.
            self._handing = asyncio.Task(self._hand_out(), name="recorded-answers")
        await turn

    async def _hand_out(self) -> None:
        try:
            while self._due:
                seen, quiet = self._asked, 0
                while quiet < QUIET_TURNS:
                    await asyncio.sleep(0)
                    quiet = quiet + 1 if self._asked == seen and not self._telling else 0
                    seen = self._asked
                *_, turn = heapq.heappop(self._due)
                if not turn.done():
                    turn.set_result(None)
        finally:
            # Also where the function has ended and its loop cancels all: what tasks withdraw then is handed out anew.
            self._handing = None

    async def stream(
        self, reader: http1.AnswerReader, path: str, lane: calls.Lane, ordinal: int, body: bytes
    ) -> AsyncIterator[bytes]:
        asked = self._reader.look_chat(lane.name, ordinal, path, body)
        self._asked += 1
        self._lanes.add(lane.name)
        answer = self._send(reader, self._wire.request(asked.lane, asked.ordinal, path, body))
        if asked.recorded is not None and asked.recorded.end:
            await self._in_turn(lane.name, asked.recorded)
            self._telling += 1
            try:
                told = [piece async for piece in answer]
            finally:
                self._telling -= 1
            for piece in told:
                yield piece
            return
        async for piece in answer:
            yield piece

    async def _send(self, reader: http1.AnswerReader, request: bytes) -> AsyncIterator[bytes]:
        if self._idle:
            incoming, outgoing = self._idle.pop()
        else:
            incoming, outgoing = await asyncio.open_unix_connection(self._wire.socket_path)
        try:
            outgoing.write(request)
            await outgoing.drain()
            while not reader.done:
                for piece in reader.feed(await incoming.read(1 << 18)):
                    check(reader)
                    yield piece
                check(reader)  # also of an answer without a body
        except BaseException:
            outgoing.close()
            raise
        if keeps(reader):
            self._idle.append((incoming, outgoing))
        else:
            outgoing.close()
