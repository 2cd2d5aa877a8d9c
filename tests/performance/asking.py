"""HTTP connections that cost little, for who asks much: what is measured is to be the other side.

One request at a time on each connection, kept for the next. No more of HTTP than the servers of ``bench_gateway``
speak: answers have a length or come in chunks, and of a body in chunks the bytes stay as they came.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple, cast

HEAD_END, CHUNKS_END = b"\r\n\r\n", b"\r\n0\r\n\r\n"
# More connect at once than a socket lets wait: again, as a node does. (A Unix socket's EAGAIN looks to asyncio as if it
# were about to be connected; it is the first write that says it never will.)
FULL, AGAIN_S = (errno.EAGAIN, errno.ECONNREFUSED, errno.ENOTCONN), 0.05
SILENCE_S = 120.0

Connect = Callable[[Callable[[], asyncio.Protocol]], Awaitable[tuple[asyncio.BaseTransport, asyncio.Protocol]]]


class Answered(NamedTuple):
    """Times are seconds from the request on, until the first byte of the body and its last."""

    status: int
    body: bytes
    first_s: float
    last_s: float


class Connections:
    """To one server, as many as are asked at once."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._idle: list[_Connection] = []

    @staticmethod
    def tcp(host: str, port: int) -> Connections:
        loop = asyncio.get_running_loop()
        return Connections(lambda protocol: loop.create_connection(protocol, host, port))

    @staticmethod
    def unix(path: str) -> Connections:
        loop = asyncio.get_running_loop()
        return Connections(lambda protocol: loop.create_unix_connection(protocol, path))

    async def ask(self, request: bytes) -> Answered:
        """Raises OSError where the connection ends before the answer does."""
        begun = time.perf_counter()
        while True:
            try:
                connection = await self._taken()
                async with asyncio.timeout(SILENCE_S):
                    first, last = await connection.ask(request)
                break
            except OSError as error:
                if error.errno not in FULL:
                    raise
                await asyncio.sleep(AGAIN_S)
        if not connection.is_closed:
            self._idle.append(connection)
        return Answered(connection.status, connection.body, first - begun, last - begun)

    async def _taken(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed:  # the other side keeps them for some seconds only
                return connection
        _, made = await self._connect(_Connection)
        return cast(_Connection, made)

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self.status = 0
        self.is_closed = False
        self._seen = bytearray()
        self._body_at = 0
        self._ends_at: int | None = None  # None: it comes in chunks
        self._first = 0.0
        self._answered: asyncio.Future[tuple[float, float]] | None = None

    @property
    def body(self) -> bytes:
        return bytes(self._seen[self._body_at :])

    def ask(self, request: bytes) -> asyncio.Future[tuple[float, float]]:
        """When its body began and ended, by ``time.perf_counter``."""
        self._seen.clear()
        self._body_at, self._ends_at, self._first = 0, None, 0.0
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answered

    def close(self) -> None:
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        self.is_closed = True
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(error or ConnectionResetError("the connection ended before the answer"))

    def data_received(self, data: bytes) -> None:
        self._seen += data
        if not self._body_at and not self._read_head():
            return
        if not self._first and len(self._seen) > self._body_at:
            self._first = time.perf_counter()
        is_whole = self._seen.endswith(CHUNKS_END) if self._ends_at is None else len(self._seen) >= self._ends_at
        if is_whole and self._answered is not None and not self._answered.done():
            self._answered.set_result((self._first, time.perf_counter()))

    def _read_head(self) -> bool:
        end = self._seen.find(HEAD_END)
        if end < 0:
            return False
        self._body_at = end + len(HEAD_END)
        head = bytes(self._seen[:end]).lower()
        self.status = int(head.split(b" ", 2)[1])
        _, named, rest = head.partition(b"\r\ncontent-length:")
        self._ends_at = self._body_at + int(rest.partition(b"\r\n")[0]) if named else None
        return True
