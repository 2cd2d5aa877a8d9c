"""The client's HTTP: what it sends is HTTP for others, and what comes is read whole or refused."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from perdure.client.http1 import HTTPConnection, HTTPException, HTTPResponse

HEAD = b"HTTP/1.1 200 OK\r\nX-Name: a value \r\n"


def answered(sent: bytes) -> HTTPResponse:
    """The answer that these bytes are, on a connection that ends after them."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(10.0)
        writing = threading.Thread(target=_send, args=(theirs, sent))
        writing.start()
        try:
            return _Whole(HTTPResponse(ours))
        finally:
            ours.shutdown(socket.SHUT_RDWR)  # who still writes, as not all was read, ends now
            writing.join()


def _send(link: socket.socket, data: bytes) -> None:
    try:
        link.sendall(data)
        link.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # it was refused before its end


class _Whole(HTTPResponse):
    """Read while its connection was there."""

    def __init__(self, inner: HTTPResponse) -> None:
        self.status = inner.status
        self._headers = inner.getheaders()
        self._data = inner.read()
        inner.close()

    def read(self) -> bytes:
        return self._data


def chunked(pieces: list[bytes], end: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(b"%X;note\r\n%s\r\n" % (len(piece), piece) for piece in pieces if piece) + end


def test_the_kinds_of_bodies() -> None:
    plain = answered(HEAD + b"Content-Length: 3\r\n\r\nabcdef")
    assert (plain.status, plain.read(), dict(plain.getheaders())["X-Name"]) == (200, b"abc", "a value")
    assert answered(HEAD + b"\r\nto the end").read() == b"to the end"
    assert answered(HEAD + b"Transfer-Encoding: Chunked\r\n\r\n" + chunked([b"ab", b"c"])).read() == b"abc"
    assert (
        answered(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunked([b"ab"], b"0\r\nT: x\r\n\r\n")).read() == b"ab"
    )
    assert answered(b"HTTP/1.1 204 No Content\r\n\r\n").read() == b""
    early = answered(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 404\r\nContent-Length: 0\r\n\r\n")
    assert (early.status, early.read()) == (404, b"")


@given(st.lists(st.binary(max_size=300), max_size=8))
def test_every_body_comes_whole(pieces: list[bytes]) -> None:
    body = b"".join(pieces)
    assert answered(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body).read() == body
    assert answered(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(pieces)).read() == body


@given(st.data(), st.booleans())
def test_what_ends_too_early_is_refused(data: Any, is_chunked: bool) -> None:
    whole = HEAD + (
        b"Transfer-Encoding: chunked\r\n\r\n" + chunked([b"abc", b"d" * 40])
        if is_chunked
        else b"Content-Length: 9\r\n\r\nabcdefghi"
    )
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(HTTPException):
        answered(whole[:cut])


PIECES = [HEAD, b"\r\n", b"Content-Length: ", b"-1", b"5", b"x" * 70000, b"Transfer-Encoding: chunked\r\n", b"zz\r\n"]
PIECES += [b"0\r\n", b"HTTP/1.1 ", b"99", b": "]


@given(st.binary(max_size=200) | st.lists(st.sampled_from(PIECES), max_size=8).map(b"".join))
@example(b"x" * 600_000)
def test_whatever_comes_is_an_answer_or_refused(sent: bytes) -> None:
    try:
        answered(sent)
    except HTTPException:
        pass


class _Echo(BaseHTTPRequestHandler):
    """Says what it was sent."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers["Content-Length"]))
        said = f"{self.path} {self.headers['x-one']} ".encode() + body
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    do_GET = do_POST  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Of a server that is not ours."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Echo)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("body", [None, b"", b"bytes", [b"in ", b"", b"pieces"]])
def test_others_understand_what_it_sends(port: int, body: Any) -> None:
    connection = HTTPConnection("127.0.0.1", port, 10.0)
    connection.request("POST", "/a?b=c", body, {"x-one": "1"})
    answer = connection.getresponse()
    sent = body if isinstance(body, bytes) else b"".join(body or [])
    assert (answer.status, answer.read()) == (200, b"/a?b=c 1 " + sent)
    answer.close()
    connection.close()


def test_nothing_slips_into_a_head(port: int) -> None:
    connection = HTTPConnection("127.0.0.1", port, 10.0)
    for target, value in (("/a\r\nX: y", "1"), ("/a", "1\r\nx-two: 2"), ("/a\n", "1")):
        with pytest.raises(HTTPException, match="control character"):
            connection.request("GET", target, None, {"x-one": value})
    connection.close()
