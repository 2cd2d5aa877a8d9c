"""A TLS connection that one thread reads while another writes."""

from __future__ import annotations

import hashlib
import queue
import random
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.client.tls import Tls, connect, shared
from perdure.errors import NoRights
from perdure.host import certificate as server

DEADLINE_S = 60.0
SIZE = 8 << 20


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[tuple[int, str]]:
    """(port, fingerprint) of a server that sends back what it gets, while it gets more."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    certificate, key = server.ensure(tmp_path, "127.0.0.1")
    context = server.context(certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    link, _ = listening.accept()
                except OSError:
                    return  # the test is over
                try:
                    with context.wrap_socket(link, server_side=True) as secure:
                        while data := secure.recv(65536):
                            secure.sendall(data)
                except OSError:
                    pass  # it did not trust us, or left

        threading.Thread(target=serve, daemon=True).start()
        yield listening.getsockname()[1], server.fingerprint(certificate)
        listening.shutdown(socket.SHUT_RDWR)


def test_both_ways_at_once(echo: tuple[int, str]) -> None:
    port, fingerprint = echo
    link = shared("127.0.0.1", port, Tls(fingerprint=fingerprint))
    sent = random.Random(1).randbytes(SIZE)
    heard: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        digest, left = hashlib.sha256(), SIZE
        while left and (data := link.recv(65536)):
            digest.update(data)
            left -= len(data)
        heard.put(digest.hexdigest())

    threading.Thread(target=read, daemon=True).start()
    for place in range(0, SIZE, 100_000):
        link.sendall(sent[place : place + 100_000])
    assert heard.get(timeout=DEADLINE_S) == hashlib.sha256(sent).hexdigest()
    link.shutdown(socket.SHUT_RDWR)
    link.close()


def test_who_waits_is_woken(echo: tuple[int, str]) -> None:
    port, fingerprint = echo
    link = shared("127.0.0.1", port, Tls(fingerprint=fingerprint))
    ended: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    reading = threading.Event()

    def read() -> None:
        reading.set()
        try:
            ended.put(link.recv(1))
        except OSError:
            ended.put(b"")

    threading.Thread(target=read, daemon=True).start()
    assert reading.wait(DEADLINE_S)
    link.shutdown(socket.SHUT_RDWR)
    assert ended.get(timeout=DEADLINE_S) == b""
    link.close()


def test_somebody_else_is_told_nothing(echo: tuple[int, str]) -> None:
    port, fingerprint = echo
    for trust in (Tls(fingerprint=fingerprint[::-1]), Tls()):
        with pytest.raises(NoRights, match="is not who it should be"):
            connect("127.0.0.1", port, DEADLINE_S, trust)
