"""HTTP/1.1 without I/O: a request as bytes, an answer from bytes (RFC 9112). What one local door needs, no more."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

HOST = "127.0.0.1:4750"


class BrokenAnswerError(ConnectionError):
    """The connection ended, or stopped to be HTTP, before the answer was complete."""


def request(path: str, lane: str, ordinal: int, body: bytes) -> bytes:
    """A POST of JSON, with the key of the call."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"Perdure-Lane: {lane}\r\nPerdure-Ordinal: {ordinal}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("ascii") + body


class AnswerReader:
    """Feed it what arrives; it yields the pieces of the body. ``status`` is 0 until the head is there."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.done = False
        self._buffer = b""
        self._left = -1  # bytes left of the body or of the chunk; -1: up to the end of the connection
        self._is_chunked = False
        self._chunk_ended = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """``b""`` means that the connection ended. Raises ``BrokenAnswerError`` when that was too early."""
        if not data:
            if self.status and self._left < 0 and not self._is_chunked:
                self.done = True
            if not self.done:
                raise BrokenAnswerError("the connection ended before the answer was complete")
            return
        self._buffer += data
        while self.status < 200 and b"\r\n\r\n" in self._buffer:
            self._read_head()
        if self.status < 200:
            return
        yield from self._read_chunks() if self._is_chunked else self._read_plain()

    def _read_head(self) -> None:
        head, self._buffer = self._buffer.split(b"\r\n\r\n", 1)
        first, *lines = head.decode("latin-1").split("\r\n")
        parts = first.split(" ", 2)
        if len(parts) < 2 or not parts[0].startswith("HTTP/1.") or not parts[1].isdigit():
            raise BrokenAnswerError(f"not an HTTP answer: {first[:60]!r}")
        self.status = int(parts[1])
        self.headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            self.headers[name.strip().lower()] = value.strip()
        self._is_chunked = self.headers.get("transfer-encoding", "").lower() == "chunked"
        if self._is_chunked or self.status in (204, 304):
            self._left = 0
        elif (length := self.headers.get("content-length", "")).isdigit():
            self._left = int(length)
        self.done = self._left == 0 and not self._is_chunked

    def _read_plain(self) -> Iterator[bytes]:
        piece, self._buffer = self._buffer, b""
        if self._left >= 0:
            piece = piece[: self._left]
            self._left -= len(piece)
            self.done = self._left == 0
        if piece:
            yield piece

    def _read_chunks(self) -> Iterator[bytes]:
        while not self.done:
            if self._left:
                piece, self._buffer = self._buffer[: self._left], self._buffer[self._left :]
                self._left -= len(piece)
                self._chunk_ended = self._left == 0
                if piece:
                    yield piece
                if self._left:
                    return
            if b"\r\n" not in self._buffer:
                return
            if self._chunk_ended:  # the empty line after a chunk's data
                self._buffer = self._buffer[2:]
                self._chunk_ended = False
                continue
            line, rest = self._buffer.split(b"\r\n", 1)
            try:
                size = int(line.split(b";", 1)[0], 16)
            except ValueError:
                raise BrokenAnswerError(f"not a chunk's size: {line[:20]!r}") from None
            self._buffer = rest
            self._left = size
            self.done = size == 0  # trailers are not for us: the connection closes
