"""The way out of a worker for functions: what the log has is answered here, what it has not by the server."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from perdure.agent import calls, http1
from perdure.agent.door import Door
from perdure.context.log import request_hash
from perdure.model import Call
from perdure.replay.book import CHAT, EXACT, Asked, Book, Mismatch, Recorded, named
from perdure.replay.outlet import Outlet
from perdure.replay.wire import Wire, leave

if TYPE_CHECKING:
    from perdure.replay.asyncdoor import AsyncReplayDoor
    from perdure.replay.relay import Relay

PLAIN = ("begin", "history", "mismatch")  # nothing is recorded of them
LAST = ("complete", "fail")
ENDS = ("step/end", "wait/withdraw")  # asked under the key of the call that they end


class Reader:
    """Asks the book, and tells the server where function and log part."""

    def __init__(self, wire: Wire, book: Book, outlet: Outlet) -> None:
        self.wire = wire
        self.book = book
        self._outlet = outlet
        self._relay: Relay | None = None

    def url(self) -> str:
        """Where HTTP clients find a way out."""
        if self._relay is None:
            from perdure.replay.relay import Relay

            self._relay = Relay(self.wire)
        return self._relay.url

    def look(self, lane: str, ordinal: int, name: str, body: Any) -> Asked:
        """The call by its key on this road. Does not return where the log has something else."""
        self._outlet.flush()
        if name in PLAIN:
            return Asked(lane, ordinal, None)
        try:
            if name in LAST:
                self.book.end()
                self._outlet.open()
                return Asked(lane, ordinal, None)
            kind, what = named(name, body)
            if name == "step" and body.get("of"):  # another attempt at a step names the first one
                first_lane, _, first = body["of"].rpartition("/")
                body["of"] = self.book.key(first_lane, int(first))
            request = self._hash(calls.BASE + name, json.dumps(body).encode()) if kind in EXACT else ""
            return self._asked(self.book.ask(lane, ordinal, kind, what, request))
        except Mismatch as mismatch:
            self._part(lane, mismatch, body if name == "fail" else None)

    def look_chat(self, lane: str, ordinal: int, path: str, body: bytes) -> Asked:
        self._outlet.flush()
        try:
            return self._asked(self.book.ask(lane, ordinal, CHAT, "", self._hash(path, body)))
        except Mismatch as mismatch:
            self._part(lane, mismatch)

    def _asked(self, asked: Asked) -> Asked:
        if asked.recorded is not None and asked.recorded.answer is None:
            self.hear(asked.recorded)  # the server has its answer, or nobody yet
        return asked

    def hear(self, call: Recorded) -> None:
        """The function gets this answer now. With the last one it begins to live, and is heard."""
        self.book.hear(call)
        if self.book.is_heard:
            self._outlet.open()

    def _hash(self, path: str, body: bytes) -> str:
        call = Call(run_id="", epoch=0, lane="", ordinal=0, method="POST", path=path, headers={}, body=body)
        return request_hash(call)

    def _part(self, lane: str, mismatch: Mismatch, failure: Any = None) -> NoReturn:
        """The run fails; nothing that the function does from here on would be what its log says."""
        self._outlet.open()
        print(f"this function does not go the way that its log has: {mismatch}", file=sys.stderr, flush=True)
        told = {"recorded": mismatch.recorded, "asked": mismatch.asked, "failure": failure}
        self.wire.ask(lane, 0, f"{calls.BASE}mismatch", json.dumps(told).encode())
        leave(1)


class ReplayDoor(Door):
    """See ``agent.door.Door``."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._wire = reader.wire

    def for_tasks(self) -> AsyncReplayDoor:
        from perdure.replay.asyncdoor import AsyncReplayDoor

        return AsyncReplayDoor(self._reader)

    def url(self) -> str:
        return self._reader.url()

    def call(self, lane: calls.Lane, name: str, body: Any, ordinal: int | None = None) -> Any:
        ordinal = lane.take() if ordinal is None else ordinal
        asked = self._reader.look(lane.name, ordinal, name, body)
        if asked.recorded is not None and asked.recorded.answer is not None:
            self._reader.hear(asked.recorded)
            return asked.recorded.answer
        path = calls.BASE + name
        return calls.answer(*self._wire.ask(asked.lane, asked.ordinal, path, json.dumps(body).encode()))

    def stream(
        self, reader: http1.AnswerReader, path: str, lane: calls.Lane, ordinal: int, body: bytes
    ) -> Iterator[bytes]:
        asked = self._reader.look_chat(lane.name, ordinal, path, body)
        yield from self._wire.stream(reader, self._wire.request(asked.lane, asked.ordinal, path, body))
