"""One call of a guest, and the answer on its way back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from perdure.errors import Conflict
from perdure.formats import channel


class GuestCall:
    """A request of the guest, whole, and the means to answer it. ``body`` is complete; ``offset`` bytes of the answer's
    body have reached the guest on former connections: the first byte written is the one at ``offset``."""

    def __init__(self, opened: channel.CallOpen, body: bytes, send: Callable[[channel.Frame], None]) -> None:
        self.lane = opened.lane
        self.ordinal = opened.ordinal
        self.method = opened.method
        self.path = opened.path
        self.headers: Mapping[str, str] = _joined(opened.headers)
        self.body = body
        self.offset = opened.offset
        self.answered = False  # a head was sent on this connection
        self.ended = False
        self._number = opened.call
        self._send = send
        self._at = opened.offset
        self._taken = 0
        self._window = asyncio.Event()

    async def respond(self, status: int, headers: Mapping[str, str]) -> None:
        """The head of the answer; a guest that has it from a former connection ignores it. Status 200 to 599."""
        if self.answered:
            raise Conflict(f"call {self.lane}/{self.ordinal} has its head already")
        self.answered = True
        self._send(channel.CallHead(self._number, status, tuple(headers.items())))

    async def write(self, data: bytes) -> None:
        """More of the body. Waits while the guest's program has 256 KiB to read."""
        if not self.answered or self.ended:
            raise Conflict(f"call {self.lane}/{self.ordinal}: a body comes after its head and before its end")
        while data:
            while (room := self._taken + channel.WINDOW_BYTES - self._at) <= 0:
                self._window.clear()
                await self._window.wait()
            chunk = data[: min(room, channel.CHUNK_BYTES)]
            self._send(channel.CallData(self._number, self._at, chunk))
            self._at += len(chunk)
            data = data[len(chunk) :]

    async def end(self) -> None:
        """The body ends here."""
        if not self.ended:
            self.ended = True
            self._send(channel.CallEnd(self._number, self._at))

    def abort(self) -> None:
        """There will be no end: the guest's program sees its connection break off."""
        if not self.ended:
            self.ended = True
            self._send(channel.CallAbort(self._number))

    def on_taken(self, offset: int) -> None:
        self._taken = offset
        self._window.set()


def _joined(headers: channel.Headers) -> dict[str, str]:
    joined: dict[str, str] = {}
    for name, value in headers:
        joined[name] = f"{joined[name]}, {value}" if name in joined else value
    return joined
