"""The way out of the guest for functions: a plain socket to guestd, one connection per call."""

from __future__ import annotations

import json
import os
import socket
import time

from perdure.agent import calls, http1
from perdure.errors import Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from perdure.agent.asyncdoor import AsyncDoor

RETRY_S = (0.05, 0.1, 0.2, 0.5, 1.0)


def address() -> tuple[str, int] | str:
    """Where guestd listens; ``PERDURE_DOOR`` (HOST:PORT, or unix:PATH: then the path) names another place."""
    place = os.environ.get("PERDURE_DOOR", http1.HOST)
    if place.startswith("unix:"):
        return place[5:]
    host, _, port = place.rpartition(":")
    return host, int(port)


def connect() -> socket.socket:
    """A connection to the door."""
    place = address()
    if not isinstance(place, str):
        return socket.create_connection(place)
    link = socket.socket(socket.AF_UNIX)
    try:
        link.connect(place)
    except OSError:
        link.close()
        raise
    return link


def url() -> str:
    """The same for HTTP clients. ``Unsupported``: that place is none for them."""
    place = address()
    if isinstance(place, str):
        hint = "set PERDURE_DOOR to HOST:PORT"
        raise Unsupported("the way out of here is a Unix socket: HTTP clients cannot use it", hint=hint)
    return f"http://{place[0]}:{place[1]}"


def retry_s(failures: int) -> float:
    """How long to wait after a connection failed ``failures`` times in a row."""
    return RETRY_S[min(failures, len(RETRY_S)) - 1]


class Door:
    """Carries calls. A call whose connection fails is sent again under its own key: the answer cannot differ."""

    def for_tasks(self) -> AsyncDoor:
        """The same way out for coroutines."""
        from perdure.agent.asyncdoor import AsyncDoor

        return AsyncDoor()

    def url(self) -> str:
        """Where HTTP clients find it: an URL without a path."""
        return url()

    def call(self, lane: calls.Lane, name: str, body: Any, ordinal: int | None = None) -> Any:
        """One call of the runs API and its JSON answer. Without ``ordinal`` it takes the lane's next one."""
        ordinal = lane.take() if ordinal is None else ordinal
        data = json.dumps(body).encode()
        failures = 0
        while True:
            reader = http1.AnswerReader()
            try:
                content = b"".join(self.stream(reader, calls.BASE + name, lane, ordinal, data))
                return calls.answer(reader.status, content)
            except OSError:
                failures += 1
                time.sleep(retry_s(failures))

    def stream(
        self, reader: http1.AnswerReader, path: str, lane: calls.Lane, ordinal: int, body: bytes
    ) -> Iterator[bytes]:
        """Send once; the pieces of the body as they arrive. OSError when it breaks before its end."""
        with connect() as link:
            link.sendall(http1.request(path, lane.name, ordinal, body))
            while not reader.done:
                yield from reader.feed(link.recv(65536))
