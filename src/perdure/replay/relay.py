"""A door in a worker that HTTP clients can use, as guestd's in a machine: on a loopback port, for ``ctx.secret``.

Whoever else is on this host cannot use it: its URL begins with a word that only the worker knows.
"""

from __future__ import annotations

import json
import secrets
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count

from perdure.agent import http1
from perdure.replay.wire import RETRY, Wire

LANE = "secret"  # nothing under it is looked up in the log
BODY_MAX = 32 << 20
LINE_MAX = 64 << 10


class Relay:
    """Open from when it is first needed to the worker's end."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.word = f"/{secrets.token_hex(16)}"
        self.numbers = count()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.relay = self
        threading.Thread(target=self._server.serve_forever, name="relay", daemon=True).start()

    @property
    def url(self) -> str:
        """Without a path at its end."""
        return f"http://127.0.0.1:{self._server.server_address[1]}{self.word}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    relay: Relay

    def handle_error(self, request: object, client_address: object) -> None:
        """Its client has a broken connection, which says it; what a worker prints is its run's."""


class _Handler(BaseHTTPRequestHandler):
    """One connection; a request is one call."""

    server: _Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """What a worker prints is its run's."""

    def do_GET(self) -> None:
        relay, self.close_connection = self.server.relay, True
        if not self.path.startswith(f"{relay.word}/") or not self.path.isascii():
            self.send_error(404)
            return
        try:
            body = self._body()
        except ValueError:
            self.send_error(400)
            return
        if len(body) > BODY_MAX:
            self.send_error(413)
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = relay.wire.request(
            LANE,
            next(relay.numbers),
            self.path.removeprefix(relay.word),
            body,
            method=self.command,
            headers=json.dumps(headers),
        )
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(relay.wire.socket_path)
            link.sendall(request)
            self._answer(link)

    do_DELETE = do_HEAD = do_OPTIONS = do_PATCH = do_POST = do_PUT = do_GET  # noqa: N815 - the names are http.server's

    def _body(self) -> bytes:
        """Of the request; of one that is too large the beginning. ValueError: it is none."""
        coding, length = self.headers.get("transfer-encoding"), self.headers.get("content-length", "0")
        if coding is None:
            return self._read(int(length))
        if coding.strip().lower() != "chunked" or "content-length" in self.headers:
            raise ValueError(coding)
        body = bytearray()
        while len(body) <= BODY_MAX and (size := int(self._line().partition(b";")[0], 16)):
            body += self._read(size)
            if self._line():
                raise ValueError("a chunk is longer than its size")
        while len(body) <= BODY_MAX and self._line():
            pass  # trailers
        return bytes(body)

    def _read(self, size: int) -> bytes:
        found = self.rfile.read(min(size, BODY_MAX + 1)) if size > 0 else b""
        if size < 0 or len(found) < min(size, BODY_MAX + 1):
            raise ValueError(size)
        return found

    def _line(self) -> bytes:
        line = self.rfile.readline(LINE_MAX)
        if not line.endswith(b"\n"):
            raise ValueError("a line that does not end")
        return line.strip()

    def _answer(self, link: socket.socket) -> None:
        reader, is_begun = http1.AnswerReader(), False
        while not reader.done:
            pieces = list(reader.feed(link.recv(1 << 16)))
            if reader.status >= 200 and not is_begun:
                is_begun = True
                self._begin(reader)
            for piece in pieces:
                if self.command != "HEAD":
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        if self.command != "HEAD" and reader.status not in (204, 304):
            self.wfile.write(b"0\r\n\r\n")

    def _begin(self, reader: http1.AnswerReader) -> None:
        self.send_response_only(reader.status)
        for name, value in reader.headers.items():
            if name not in ("connection", "content-length", "transfer-encoding", RETRY):
                if name == "location" and value.startswith("/"):
                    value = self.server.relay.word + value
                self.send_header(name, value)
        self.send_header("connection", "close")
        if self.command != "HEAD" and reader.status not in (204, 304):
            self.send_header("transfer-encoding", "chunked")
        self.end_headers()
