"""An HTTP proxy before a store that misbehaves as it is told: what stands for a bad network and a bad server.

It listens on loopback and sends everything to one server. ``faults`` are used up one by one, each by the first request
that it fits; ``always`` are not used up. Nothing is cached and nothing is retried here.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "date", "server"}
STALL_DEADLINE_S = 60.0
TRICKLE_S = 0.1
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Asked:
    """One request, as it was recorded."""

    method: str
    path: str
    range: str
    host: str
    authorization: str
    length: int  # of its body


@dataclass(frozen=True)
class Fault:
    """What happens to a request that ``fits``.

    ``kind``: "stall" (no answer), "short" (half the body, then the connection ends), "stall-half" (half the body, then
    nothing), "trickle" (a byte now and then), "close" (the connection ends at once), "flip" (one bit of the answer's
    body is another), "flip-sent" (one bit of the request's body is), "status" (``status`` with ``headers`` instead of
    an answer), "huge" (a body of ``length`` bytes of spaces).
    """

    kind: str
    fits: Callable[[Asked], bool] = lambda asked: True
    status: int = 500
    headers: tuple[tuple[str, str], ...] = ()
    length: int = 0


class FaultingProxy:
    """``url`` and ``host`` of the proxy before ``upstream`` (HOST:PORT). ``latency_s`` delays each answer.

    A context manager; leaving it ends what stalls.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.latency_s = 0.0
        self.faults: list[Fault] = []
        self.always: list[Fault] = []
        self.asked: list[Asked] = []
        self.over = threading.Event()
        self._guard = threading.Lock()
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self.url = f"http://{self.host}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> FaultingProxy:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.over.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def take(self, asked: Asked) -> Fault | None:
        """What happens to this request; it is recorded."""
        with self._guard:
            self.asked.append(asked)
            for fault in self.always:
                if fault.fits(asked):
                    return fault
            for number, fault in enumerate(self.faults):
                if fault.fits(asked):
                    return self.faults.pop(number)
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True  # a handler waits for its client's next request, which may never come
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    owner: FaultingProxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # its answers are two writes, and the latency is to be ours

    def handle_one(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        sent = {name: str(self.headers.get(name, "")) for name in ("Range", "Host", "Authorization")}
        asked = Asked(self.command, self.path, sent["Range"], sent["Host"], sent["Authorization"], length)
        fault = self.owner.take(asked)
        body = self.rfile.read(length) if length else None
        if self.owner.latency_s:
            time.sleep(self.owner.latency_s)  # the network is as long as this
        kind = fault.kind if fault else ""
        if kind == "close":
            self.close_connection = True
        elif kind == "stall":
            self._stall()
        elif fault is not None and kind in ("status", "huge"):
            self._answer(fault.status, list(fault.headers), b" " * fault.length)
        else:
            self._forward(_flipped(body) if kind == "flip-sent" and body else body, kind)

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = handle_one  # noqa: N815 - names of http.server

    def _forward(self, body: bytes | None, kind: str) -> None:
        upstream = http.client.HTTPConnection(self.owner.upstream, timeout=STALL_DEADLINE_S)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
            upstream.request(self.command, self.path, body=body, headers=headers)
            answer = upstream.getresponse()
            data = answer.read()
        finally:
            upstream.close()
        kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in HOP_BY_HOP]
        if kind == "flip" and data:
            data = _flipped(data)
        if kind == "trickle":
            self._answer(answer.status, kept, data, sent=0)
            for place in range(len(data)):
                self.wfile.write(data[place : place + 1])
                if self.owner.over.wait(TRICKLE_S):
                    break
            self.close_connection = True
        elif kind in ("short", "stall-half"):
            self._answer(answer.status, kept, data, sent=len(data) // 2)
            self.wfile.flush()
            if kind == "stall-half":
                self._stall()
            self.close_connection = True
        else:
            self._answer(answer.status, kept, data)

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, sent: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() != "content-length" or self.command == "HEAD":
                self.send_header(name, value)
        if self.command != "HEAD" and status not in (204, 304):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data if sent is None else data[:sent])

    def _stall(self) -> None:
        self.owner.over.wait(STALL_DEADLINE_S)
        self.close_connection = True

    def log_message(self, *args: object) -> None:
        """Quiet."""


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
