"""What a client may send that it should not, to a real fcrund, over TLS and over the Unix socket; without a machine."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator

import pytest

from perdure.errors import TooLarge
from perdure.model import SandboxSpec
from perdure.node.access import JSON_BYTES, RULES
from perdure.testing.outside import OutsideNode, answer
from perdure.testing.tinynodes import root_tar
from perdure.testing.ways import CONNECTIONS, DEADLINE_S, PATIENCE_S, Way, ends, ends_each, strict_node, way_to


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OutsideNode]:
    with strict_node(tmp_path_factory.mktemp("bad")) as node:
        yield node


@pytest.fixture(params=["tls", "unix"])
def way(request: pytest.FixtureRequest, node: OutsideNode) -> Iterator[Way]:
    with way_to(node, over_tls=request.param == "tls") as way:
        yield way


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/v1/sandboxes", b"{", 400, "invalid-value"),
        ("POST", "/v1/sandboxes", b"\xff\xfe", 400, "invalid-value"),
        ("POST", "/v1/sandboxes", b"[" * 100_000, 400, "invalid-value"),
        ("POST", "/v1/sandboxes", b'{"image": "tiny", "command": "true"}', 400, "invalid-value"),
        ("POST", "/v1/sandboxes", b'{"image": "tiny", "command": ["x"], "vcpus": 1e99}', 400, "invalid-value"),
        ("POST", "/v1/sandboxes", b'{"image": "tiny", "command": ["x"], "name": "a\\u0000b"}', 400, "invalid-value"),
        ("POST", "/v1/sandboxes", b'{"image": "tiny", "command": ["x"], "name": "a\\nb"}', 400, "invalid-value"),
        ("POST", "/v1/sandboxes", b'{"image": "ti\\u0000ny", "command": ["x"]}', None, None),
        ("POST", "/v1/sandboxes/box/stop", b'{"timeout_s": "long"}', 400, "invalid-value"),
        ("POST", "/v1/sandboxes/box/stop", b'{"timeout_s": NaN}', 400, "invalid-value"),
        ("POST", "/v1/sandboxes/box/kill", b'{"signal": "WHAT"}', 400, "invalid-value"),
        ("POST", "/v1/tokens", b'{"scope": "god"}', 400, "invalid-value"),
        ("POST", "/v1/tokens", b'{"expires_s": -1}', 400, "invalid-value"),
        ("POST", "/v1/tokens", b'{"name": "a\\nb"}', 400, "invalid-value"),
        ("GET", "/", b"", 404, "not-found"),
        ("GET", "/v1", b"", 404, "not-found"),
        ("GET", "/v1/sandboxes/box/../box", b"", 404, "not-found"),
        ("GET", "//v1/sandboxes", b"", 404, "not-found"),
        ("DELETE", "/v1/sandboxes", b"", 405, "wrong-method"),
        ("PUT", "/v1/images/load", b"", 405, "wrong-method"),
        ("TRACE", "/v1/images", b"", 405, "wrong-method"),
        ("BREW", "/v1/images", b"", 400, "invalid-value"),
        ("GET", "/v1/sandboxes/%00", b"", 404, "not-found"),
        ("GET", "/v1/sandboxes/box%0a", b"", 404, "not-found"),
        ("GET", "/v1/sandboxes/%ff%fe", b"", 404, "not-found"),
        ("GET", "/v1/sandboxes/%zz", b"", 404, "not-found"),
        ("GET", "/v1/sandboxes/%", b"", 404, "not-found"),
        ("GET", "/v1/sandboxes/..%2f..%2fetc", b"", 404, "not-found"),
        ("GET", "/v1/sandboxes/" + "a" * 4000, b"", 404, "not-found"),
        ("GET", "/v1/snapshots/%00", b"", 404, "not-found"),
        ("DELETE", "/v1/images?name=%00", b"", None, None),
        ("GET", "/v1/sandboxes/box/logs?tail=many", b"", 400, "invalid-value"),
        ("GET", "/v1/sandboxes/box/logs?since=nan", b"", 400, "invalid-value"),
        ("GET", "/v1/events?until=inf&since=0", b"", 400, "invalid-value"),
        ("GET", "/v1/system/audit?since=yesterday", b"", 400, "invalid-value"),
        ("PUT", "/v1/sandboxes/box/archive?path=%00", b"", 400, "invalid-value"),
        ("PUT", "/v1/sandboxes/box/archive?path=etc", b"", 400, "invalid-value"),
        ("PUT", "/v1/sandboxes/box/archive?path=/etc", b"no tar", 400, "invalid-value"),
    ],
)
def test_a_wrong_request(way: Way, method: str, path: str, body: bytes, status: int | None, code: str | None) -> None:
    told = way.ask(method, path, body)
    assert told.headers["content-type"] == "application/json" and told.headers["server"] == "fcrund"
    assert 400 <= told.status < 500
    assert status is None or (told.status, told.code) == (status, code)


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"GET /v1/images HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n",
        b"GET /v1/images HTTP/1.1\r\nHost: x\r\nA: \x00\r\n\r\n",
        b"POST /v1/sandboxes HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n",
        b"POST /v1/sandboxes HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"POST /v1/sandboxes HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/images HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 20_000 + b"\r\n\r\n",
        b"GET /v1/images HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 5000 + b"\r\n",
    ],
    ids=lambda data: repr(data[:40]),
)
def test_what_is_no_http(way: Way, data: bytes) -> None:
    told = way.say(data)
    assert told.headers["content-type"] == "application/json"
    assert told.status in (400, 401, 413) and told.code in ("invalid-value", "unauthorized", "too-large")


def test_an_expectation_that_nobody_knows(way: Way) -> None:
    told = way.ask("POST", "/v1/sandboxes", b"{}", "Expect: nonsense\r\n")
    assert (told.status, told.code) == (400, "invalid-value")


def test_a_chunk_that_is_none(way: Way) -> None:
    told = way.say(
        f"POST /v1/sandboxes HTTP/1.1\r\n{way.head}Transfer-Encoding: chunked\r\n\r\nzz\r\n{{}}\r\n0\r\n\r\n"
    )
    assert told.status == 400 and told.code == "invalid-value"


@pytest.mark.parametrize("route", sorted(route for route in RULES if route.startswith("POST")))
def test_a_body_that_is_too_large(way: Way, route: str) -> None:
    """Said at once where the length is known, and as soon as it is too much where not."""
    limit = RULES[route].body_bytes
    if limit is None:
        return
    method, path = route.split()
    path = path.format(ref="box", name="box")
    told = way.say(f"{method} {path} HTTP/1.1\r\n{way.head}Content-Length: {limit + 1}\r\n\r\n")
    assert (told.status, told.code) == (413, "too-large") and str(limit) in told.body.decode()


def test_a_chunked_body_that_is_too_large(way: Way) -> None:
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    head = f"POST /v1/sandboxes HTTP/1.1\r\n{way.head}Transfer-Encoding: chunked\r\n\r\n"
    told = way.say(head.encode() + chunk * (JSON_BYTES // 0x10000 + 1) + b"0\r\n\r\n")
    assert (told.status, told.code) == (413, "too-large")


def test_the_client_is_told_that_it_was_too_much(node: OutsideNode) -> None:
    """While it is still sending."""
    spec = SandboxSpec(image="tiny", command=["x" * (64 << 20)])
    for client in (node.client, node.reached_with(token := node.token())):
        with pytest.raises(TooLarge):
            client.create(spec)
    node.client.border.remove_token(token.split("_")[1])


def test_a_body_that_would_grow_is_not_unpacked(way: Way) -> None:
    import gzip

    packed = gzip.compress(b" " * (64 << 20))
    assert len(packed) < JSON_BYTES
    told = way.ask("POST", "/v1/sandboxes", packed, "Content-Encoding: gzip\r\n")
    assert told.status == 400 and told.code == "invalid-value"


# -- slow ones -------------------------------------------------------------------------------------------------------
def test_a_header_that_does_not_come(way: Way) -> None:
    ends_each(way.connect, (b"", b"GET /v1/images HTTP/1.1\r\nHost: x\r\n", b"GET"))


def test_a_header_that_comes_byte_by_byte(way: Way) -> None:
    """That there is always a little more is no reason to wait for ever."""
    began = time.monotonic()
    with way.connect() as link:
        link.settimeout(0.05)
        text = f"GET /v1/images HTTP/1.1\r\n{way.head}A: ".encode() + b"a" * 8000
        is_open = True
        for place in range(len(text)):
            try:
                link.sendall(text[place : place + 1])
                is_open = bool(link.recv(1))
            except TimeoutError:
                continue
            except OSError:
                is_open = False
            if not is_open:
                break
        assert not is_open and time.monotonic() - began < 10 * PATIENCE_S


def test_a_body_that_stops(way: Way) -> None:
    with way.connect() as link, way.connect() as other:
        link.sendall(f"POST /v1/sandboxes HTTP/1.1\r\n{way.head}Content-Length: 100\r\n\r\n{{    ".encode())
        chunk = "5\r\n{    \r\n"
        other.sendall(f"POST /v1/sandboxes HTTP/1.1\r\n{way.head}Transfer-Encoding: chunked\r\n\r\n{chunk}".encode())
        for told in (answer(link), answer(other)):
            assert (told.status, told.code) == (408, "too-slow")


def test_an_upload_that_is_slow_and_goes_on(way: Way) -> None:
    tar = root_tar()
    parts = [tar[place : place + len(tar) // 6 + 1] for place in range(0, len(tar), len(tar) // 6 + 1)]
    with way.connect() as link:
        head = f"PUT /v1/sandboxes/box/archive?path=/tmp HTTP/1.1\r\n{way.head}Content-Length: {len(tar)}\r\n\r\n"
        link.sendall(head.encode())
        for part in parts:
            link.settimeout(PATIENCE_S * 0.4)
            with pytest.raises(TimeoutError):
                link.recv(1)  # it waits: nothing is said
            link.settimeout(DEADLINE_S)
            link.sendall(part)
        assert answer(link).status == 200


def test_an_upload_that_stops(way: Way, node: OutsideNode) -> None:
    with way.connect() as link:
        head = f"POST /v1/images/load HTTP/1.1\r\n{way.head}Content-Length: 1000000\r\n\r\n"
        link.sendall(head.encode() + bytes(1000))
        assert answer(link).code == "too-slow"
    with way.connect() as link:
        link.sendall(head.encode() + bytes(1000))
        link.shutdown(socket.SHUT_WR)
        assert ends(link) < 10 * PATIENCE_S
    deadline = time.monotonic() + DEADLINE_S
    while list(node.home.run.glob("upload-*")):  # it goes as soon as the node has noticed
        assert time.monotonic() < deadline


def test_a_client_that_closes_half_of_the_connection(way: Way) -> None:
    """Counts as one that has left: of one that has, nothing else can be seen until it is sent something."""
    with way.connect() as link:
        link.sendall(f"GET /v1/events HTTP/1.1\r\n{way.head}\r\n".encode())
        assert link.recv(12) == b"HTTP/1.1 200"
        link.shutdown(socket.SHUT_WR)
        assert ends(link) < 10 * PATIENCE_S


def test_a_client_that_resets_the_connection(way: Way) -> None:
    link = way.connect()
    link.sendall(f"GET /v1/events HTTP/1.1\r\n{way.head}\r\n".encode())
    assert link.recv(12) == b"HTTP/1.1 200"
    if way.token:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    link.close()


# -- many of them ----------------------------------------------------------------------------------------------------
def test_too_many_connections_are_told_so(way: Way, node: OutsideNode) -> None:
    token = "" if way.token else node.token()
    other = node.reached_with(token) if token else node.client
    held: list[socket.socket] = []
    try:
        told = None
        for _ in range(4 * CONNECTIONS):  # others may hold some
            link = way.connect()
            held.append(link)
            link.sendall(f"GET /v1/events HTTP/1.1\r\n{way.head}\r\n".encode())
            if (first := link.recv(12)) != b"HTTP/1.1 200":
                told = first
                break
        assert told == b"HTTP/1.1 503" and len(held) > CONNECTIONS // 2
        rest = link.recv(65536)
        assert b'"unavailable"' in rest and f"{CONNECTIONS} connections".encode() in rest
        assert other.images()  # the other door is open
    finally:
        for link in held:
            link.close()
    deadline = time.monotonic() + DEADLINE_S
    while True:  # the node has yet to notice that they have gone
        try:
            if way.ask("GET", "/v1/images").status == 200:
                break
        except (OSError, EOFError):
            pass
        assert time.monotonic() < deadline
    if token:
        node.client.border.remove_token(token.split("_")[1])
