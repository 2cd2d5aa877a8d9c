"""HTTP/1.1 (RFC 9112) to a daemon of ours: one request on a connection, and its answer as it arrives.

The standard library's client takes longer to import than all of ``fcrun ps`` takes to run: for it come the parser of
e-mail and OpenSSL. This is what it has that a daemon of ours is asked with, by the same names.
"""

from __future__ import annotations

import io
import socket
from collections.abc import Iterable, Mapping

LINE_MAX_BYTES = 1 << 16
HEADERS_MAX = 200
READ_BYTES = 1 << 16


class HTTPException(Exception):
    """What came is no answer, or ends before its end."""


class HTTPConnection:
    """``connect`` may be another in a subclass: it sets ``sock``."""

    def __init__(self, host: str, port: int = 80, timeout: float | None = None) -> None:
        self.host, self.port, self.timeout = host, port, timeout
        self.sock: socket.socket | None = None

    def connect(self) -> None:
        self.sock = socket.create_connection((self.host, self.port), self.timeout)

    def request(
        self,
        method: str,
        target: str,
        body: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Send it; a body that is not bytes is sent chunk by chunk. Raises OSError."""
        if self.sock is None:
            self.connect()
        sock = self.sock
        assert sock is not None
        given = {"Host": self.host, "Accept-Encoding": "identity", **(headers or {})}
        if isinstance(body, bytes):
            given["Content-Length"] = str(len(body))
        elif body is not None:
            given["Transfer-Encoding"] = "chunked"
        elif method in ("POST", "PUT"):
            given["Content-Length"] = "0"
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items())]
        if any(ord(character) < 32 for line in lines for character in line):
            raise HTTPException(f"a control character in the request {method} {target!r}")
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        if body is None or isinstance(body, bytes):
            sock.sendall(head + (body or b""))
            return
        sock.sendall(head)
        for piece in body:
            if piece:
                sock.sendall(b"%x\r\n" % len(piece) + piece + b"\r\n")
        sock.sendall(b"0\r\n\r\n")

    def getresponse(self) -> HTTPResponse:
        """Once its head is there. Raises HTTPException, OSError."""
        assert self.sock is not None
        return HTTPResponse(self.sock)

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()
            self.sock = None


class HTTPResponse:
    """``status``; its body by ``read`` and ``read1``."""

    def __init__(self, sock: socket.socket) -> None:
        self._file: io.BufferedReader = sock.makefile("rb", READ_BYTES)  # type: ignore[assignment]  # it is one, says socket
        try:
            self.status = 0
            while self.status < 200:  # 1xx: another follows
                self.status, self._headers = self._head()
        except BaseException:
            self._file.close()
            raise
        named = {name.lower(): value for name, value in self._headers}
        self._is_chunked = named.get("transfer-encoding", "").lower() == "chunked"
        self._left: int | None = None  # of the body or of the chunk; None: up to the end of the connection
        if self._is_chunked or self.status in (204, 304):
            self._left = 0
        elif "content-length" in named:
            self._left = _number(named["content-length"], 10)
        self._over = self._left == 0 and not self._is_chunked
        self._begun = False

    def getheaders(self) -> list[tuple[str, str]]:
        return self._headers

    def _line(self) -> str:
        line = self._file.readline(LINE_MAX_BYTES + 1)
        if not line.endswith(b"\n"):
            raise HTTPException("the connection ended within the answer's head" if len(line) <= LINE_MAX_BYTES else
                                "a line of the answer's head is too long")  # fmt: skip
        return line.decode("latin-1").rstrip("\r\n")

    def _head(self) -> tuple[int, list[tuple[str, str]]]:
        first = self._line().split(" ", 2)
        if len(first) < 2 or not first[0].startswith("HTTP/1.") or not (first[1].isdecimal() and len(first[1]) == 3):
            raise HTTPException(f"this is no HTTP answer: {' '.join(first)[:60]!r}")
        headers: list[tuple[str, str]] = []
        while line := self._line():
            name, _, value = line.partition(":")
            headers.append((name.strip(), value.strip()))
            if len(headers) > HEADERS_MAX:
                raise HTTPException("the answer has too many headers")
        return int(first[1]), headers

    def read(self) -> bytes:
        """The rest of the body. Raises HTTPException where it ends too early, OSError."""
        pieces: list[bytes] = []
        while piece := self.read1(READ_BYTES):
            pieces.append(piece)
        return b"".join(pieces)

    def read1(self, size: int) -> bytes:
        """What is there of the body, at most so much, waiting for some; empty at its end. Raises as ``read``."""
        if not self._over and self._is_chunked and self._left == 0:
            self._next_chunk()
        if self._over:
            return b""
        piece = self._file.read1(size if self._left is None else min(size, self._left))
        if not piece:
            if self._left is not None:
                raise HTTPException("the connection ended before the answer's end")
            self._over = True
        elif self._left is not None:
            self._left -= len(piece)
            self._over = self._left == 0 and not self._is_chunked
        return piece

    def _next_chunk(self) -> None:
        if self._begun and self._line():
            raise HTTPException("a chunk of the answer does not end where it should")
        self._begun = True
        self._left = _number(self._line().partition(";")[0].strip(), 16)
        if self._left == 0:
            while self._line():
                pass  # trailers
            self._over = True

    def close(self) -> None:
        self._file.close()


def _number(text: str, base: int) -> int:
    try:
        number = int(text, base)
    except ValueError:
        number = -1
    if number < 0 or text[:1] in "+-":
        raise HTTPException(f"{text[:20]!r} is no length")
    return number
