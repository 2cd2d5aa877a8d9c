"""One synchronous WebSocket connection, for interactive sessions: a terminal, a piped stdin."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from perdure.errors import ProtocolError, Unavailable, from_json

CHUNK_BYTES = 1 << 16


class Link(Protocol):
    """What it needs of a socket."""

    def sendall(self, data: bytes, /) -> None: ...

    def recv(self, size: int, /) -> bytes: ...

    def shutdown(self, how: int, /) -> None: ...

    def close(self) -> None: ...


class WebSocket:
    """Binary and JSON messages both ways. One thread may read while others send."""

    def __init__(self, link: Link, target: str, *, headers: Mapping[str, str]) -> None:
        self._link = link
        self._protocol = WSConnection(ConnectionType.CLIENT)
        self._sending = threading.Lock()
        self._events: Iterator[Event] = iter(())
        extra = [(name.encode(), value.encode()) for name, value in headers.items()]
        try:
            self._send(Request(host="localhost", target=target, extra_headers=extra))
            self._handshake()
        except BaseException:
            link.close()
            raise

    def _handshake(self) -> None:
        status, refusal = 0, b""
        while (event := self._next()) is not None:
            if isinstance(event, AcceptConnection):
                return
            if isinstance(event, RejectConnection):
                status = event.status_code
            if isinstance(event, RejectData):
                refusal += event.data
                if event.body_finished:
                    break
        try:
            error = from_json(json.loads(refusal)["error"])
        except (ValueError, KeyError, TypeError):
            error = ProtocolError(f"the daemon refused a WebSocket with status {status}: {refusal[:200]!r}")
        raise error

    def _send(self, event: Any) -> None:
        with self._sending:
            try:
                self._link.sendall(self._protocol.send(event))
            except (OSError, LocalProtocolError) as error:
                raise Unavailable(f"the connection to the daemon broke: {error!r}") from error

    def _next(self) -> Event | None:
        """The next event, or None at the connection's end."""
        while True:
            if (event := next(self._events, None)) is not None:
                return event
            try:
                data = self._link.recv(CHUNK_BYTES)
            except OSError:
                data = b""
            if not data:
                return None
            try:
                with self._sending:
                    self._protocol.receive_data(data)
                    self._events = iter(list(self._protocol.events()))
            except RemoteProtocolError as error:
                raise ProtocolError(f"the daemon broke the WebSocket protocol: {error}") from error

    def send_bytes(self, data: bytes) -> None:
        self._send(BytesMessage(data=data))

    def send_json(self, value: Any) -> None:
        self._send(TextMessage(data=json.dumps(value)))

    def messages(self) -> Iterator[bytes | dict[str, Any]]:
        """Binary messages as bytes, text messages decoded from JSON; ends when the peer closes.

        Raises Unavailable when the connection breaks without a close.
        """
        binary: list[bytes] = []
        text: list[str] = []
        while (event := self._next()) is not None:
            if isinstance(event, BytesMessage):
                binary.append(bytes(event.data))
                if event.message_finished:
                    yield b"".join(binary)
                    binary.clear()
            elif isinstance(event, TextMessage):
                text.append(event.data)
                if event.message_finished:
                    yield json.loads("".join(text))
                    text.clear()
            elif isinstance(event, Ping):
                self._send(event.response())
            elif isinstance(event, CloseConnection):
                try:
                    self._send(event.response())
                except Unavailable:
                    pass  # it closed first
                return
        raise Unavailable("the connection to the daemon broke")

    def close(self) -> None:
        try:
            self._link.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the peer was first
        self._link.close()

    def __enter__(self) -> WebSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
