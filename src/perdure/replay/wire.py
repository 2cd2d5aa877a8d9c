"""A worker's connection to its server: the node's way of forwarding calls (0001-contracts, 6), without a node."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator
from typing import NoReturn

from perdure.agent import http1
from perdure.agent.door import retry_s

RETRY = "perdure-retry"
STALE = 410
STALE_STATUS = 75  # of a process whose run has moved on


class AgainError(ConnectionError):
    """The server cannot answer now, and says so: the call is asked again."""


class Wire:
    """Where a worker sends its calls, and in whose name. One connection, kept open; of one thread."""

    def __init__(self, url: str, run_id: str, epoch: int, token: str) -> None:
        """url: ``unix:SOCKET:PATH``."""
        self.socket_path, _, path = url.removeprefix("unix:").rpartition(":")
        self._head = (
            f"POST {path} HTTP/1.1\r\nHost: perdured\r\nPerdure-Run: {run_id}\r\nPerdure-Epoch: {epoch}\r\n"
            f"Perdure-Token: {token}\r\nContent-Type: application/json\r\n"
        )
        self._link: socket.socket | None = None

    def request(
        self, lane: str, ordinal: int, path: str, body: bytes, *, method: str = "POST", headers: str = "{}"
    ) -> bytes:
        """The bytes of one call. headers: as JSON."""
        head = (
            f"{self._head}Perdure-Lane: {lane}\r\nPerdure-Ordinal: {ordinal}\r\nPerdure-Path: {path}\r\n"
            f"Perdure-Method: {method}\r\nPerdure-Headers: {headers}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode("ascii") + body

    def ask(self, lane: str, ordinal: int, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and body of an answer. Asked until there is one."""
        request, failures = self.request(lane, ordinal, path, body), 0
        while True:
            reader = http1.AnswerReader()
            try:
                content = b"".join(self.stream(reader, request))
                return reader.status, content
            except OSError:
                failures += 1
                time.sleep(retry_s(failures))

    def stream(self, reader: http1.AnswerReader, request: bytes) -> Iterator[bytes]:
        """Send once; the pieces of the answer's body as they arrive. OSError when it breaks before its end."""
        link, self._link = self._link or self._connect(), None
        try:
            link.sendall(request)
            while not reader.done:
                pieces = reader.feed(link.recv(1 << 18))
                for piece in pieces:
                    check(reader)
                    yield piece
                check(reader)
        except BaseException:
            link.close()
            raise
        if keeps(reader):
            self._link = link
        else:
            link.close()

    def _connect(self) -> socket.socket:
        link = socket.socket(socket.AF_UNIX)
        try:
            link.connect(self.socket_path)
        except OSError:
            link.close()
            raise
        return link


def check(reader: http1.AnswerReader) -> None:
    """Raises AgainError where the server asks to be asked again; ends this process where its run has moved on."""
    if reader.status == STALE:
        leave(STALE_STATUS)
    if RETRY in reader.headers:
        raise AgainError("the server asks to be asked again")


def keeps(reader: http1.AnswerReader) -> bool:
    """The connection is good for another call: all of this answer was read."""
    return "content-length" in reader.headers and reader.headers.get("connection", "").lower() != "close"


def leave(status: int) -> NoReturn:
    """End this process now, whatever its agent would do about it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass  # closed, or nobody reads it
    os._exit(status)
