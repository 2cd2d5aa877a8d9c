"""What a client may send that it should not, to a real fcrund, over TLS and over the Unix socket; without a machine."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import ssl
import struct
import time
from collections.abc import Iterator

import pytest

from perdure.client.node import NodeClient
from perdure.errors import Conflict, TooLarge
from perdure.host.paths import Home
from perdure.model import SandboxSpec
from perdure.node.access import JSON_BYTES, RULES
from perdure.testing.outside import Answer, OutsideNode, answer, outside_node
from perdure.testing.tinynodes import root_tar

PATIENCE_S = 1
CONNECTIONS = 20
DEADLINE_S = 20.0
UPGRADE = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)


class Way:
    """Raw connections to the node, over TLS with a token, or over the Unix socket."""

    def __init__(self, node: OutsideNode, token: str) -> None:
        self.node, self.token = node, token

    @property
    def head(self) -> str:
        return f"Host: node\r\nAuthorization: Bearer {self.token}\r\n" if self.token else "Host: node\r\n"

    def connect(self) -> socket.socket:
        link = self.node.connect() if self.token else self.node.local()
        link.settimeout(DEADLINE_S)
        return link

    def say(self, data: bytes | str) -> Answer:
        with self.connect() as link:
            with contextlib.suppress(OSError):  # it may answer before it has heard all
                link.sendall(data.encode() if isinstance(data, str) else data)
            return answer(link)

    def ask(self, method: str, path: str, body: bytes = b"", more: str = "") -> Answer:
        head = f"{method} {path} HTTP/1.1\r\n{self.head}{more}Content-Length: {len(body)}\r\n\r\n"
        return self.say(head.encode() + body)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OutsideNode]:
    if shutil.which("mksquashfs") is None:
        pytest.skip("mksquashfs is not installed")
    root = tmp_path_factory.mktemp("bad")
    home = Home(root / "home", root / "cache").make()
    with outside_node(home, f"patience_s = {PATIENCE_S}\nconnections = {CONNECTIONS}\n") as node:
        node.client.import_image("tiny", root_tar())
        node.client.create(SandboxSpec(image="tiny", command=["/bin/true"], name="box"))
        yield node


@pytest.fixture(params=["tls", "unix"])
def way(request: pytest.FixtureRequest, node: OutsideNode) -> Iterator[Way]:
    token = node.token("all") if request.param == "tls" else ""
    yield Way(node, token)
    if token:
        node.client.border.remove_token(token.split("_")[1])
    assert [info.name for info in node.client.list()] == ["box"]  # it serves as before


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
def ends(link: socket.socket) -> float:
    """After how long the node ends the connection, whatever it says before."""
    began = time.monotonic()
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while link.recv(65536):
            pass
    return time.monotonic() - began


def test_a_header_that_does_not_come(way: Way) -> None:
    for data in (b"", b"GET /v1/images HTTP/1.1\r\nHost: x\r\n", b"GET"):
        with way.connect() as link:
            link.sendall(data)
            assert ends(link) < 10 * PATIENCE_S


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
    for head in ("Content-Length: 100", "Transfer-Encoding: chunked"):
        data = "5\r\n{    \r\n" if "chunked" in head else "{    "
        with way.connect() as link:
            link.sendall(f"POST /v1/sandboxes HTTP/1.1\r\n{way.head}{head}\r\n\r\n{data}".encode())
            told = answer(link)
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


# -- WebSockets ------------------------------------------------------------------------------------------------------
def frame(opcode: int, data: bytes, *, length: int | None = None, final: bool = True, masked: bool = True) -> bytes:
    """RFC 6455, 5.2, masked with zeros."""
    said = len(data) if length is None else length
    size = bytes((0x80 * masked | 127,)) + struct.pack(">Q", said)
    return bytes((0x80 * final | opcode,)) + size + bytes(4 if masked else 0) + data


def websocket(way: Way, path: str = "/v1/sandboxes/box/exec", more: str = "") -> socket.socket:
    link = way.connect()
    link.sendall(f"GET {path} HTTP/1.1\r\n{way.head}{UPGRADE}{more}\r\n".encode())
    return link


def upgraded(way: Way) -> socket.socket:
    link = websocket(way)
    head = b""
    while b"\r\n\r\n" not in head:
        head += link.recv(1)
    assert head.startswith(b"HTTP/1.1 101")
    return link


@pytest.mark.parametrize(
    "more",
    [
        "Connection: keep-alive\r\n",
        UPGRADE.replace("13", "99"),
        UPGRADE.replace("AAAAAAAAAAAAAAAAAAAAAA==", "short"),
        UPGRADE + "Sec-WebSocket-Protocol: chat, superchat\r\n",
    ],
)
def test_an_upgrade_that_is_none(way: Way, more: str) -> None:
    with way.connect() as link:
        link.sendall(f"GET /v1/sandboxes/box/exec HTTP/1.1\r\n{way.head}{more}\r\n".encode())
        told = answer(link)
    assert (told.status, told.code) == (400, "invalid-value")


@pytest.mark.parametrize(
    "data",
    [
        frame(2, b"", length=1 << 40),
        frame(1, b"x" * 10, length=9 << 20),
        frame(1, b'{"exec": {"command": ["true"]}}', masked=False),
        frame(3, b"what"),
        frame(0, b"goes on from nothing"),
        frame(9, b"p" * 200),
        frame(1, b"\xff\xff"),
        frame(1, b"no json"),
        frame(1, b"7"),
        frame(1, b'{"exec": 7}'),
        frame(2, b"bytes first"),
        frame(8, b"\x00"),
        frame(1, b"{", final=False) + frame(1, b"}"),
    ],
    ids=lambda data: repr(data[:14]),
)
def test_frames_that_are_none(way: Way, data: bytes) -> None:
    """The session ends; the node goes on."""
    with upgraded(way) as link:
        link.sendall(data)
        assert ends(link) < 10 * PATIENCE_S


def test_an_exec_that_does_not_say_what(way: Way) -> None:
    with upgraded(way) as link:
        assert ends(link) < 10 * PATIENCE_S


def test_inputs_that_are_none_end_an_attach(way: Way) -> None:
    for wish in (b"[]", b'{"resize": [1]}', b'{"resize": "x"}', b'{"signal": "WHAT"}', b"no json"):
        link = websocket(way, "/v1/sandboxes/box/attach")
        with link:
            head = b""
            while b"\r\n\r\n" not in head:
                head += link.recv(1)
            link.sendall(frame(1, wish))
            assert ends(link) < 10 * PATIENCE_S, wish


# -- the audit -------------------------------------------------------------------------------------------------------
def test_the_audit_says_who_did_what(node: OutsideNode) -> None:
    began = time.time()
    token = node.token("own", "carl")
    carl = node.reached_with(token)
    spec = SandboxSpec(image="tiny", command=["/bin/true"], name="his", env={"KEY": "s3cr3t"})
    made = carl.create(spec)
    carl.list()
    status, _, _ = node.fcrun(token, "rm", "box")
    assert status == 125
    node.ask("GET", "/v1/sandboxes", "fcrun_000000000000_guess")
    carl.remove("his")
    node.client.border.remove_token("carl")
    entries = list(node.client.border.audit(since=began))
    by_carl = [entry for entry in entries if entry.who.get("name") == "carl"]
    assert [(one.method, one.route, one.phase, one.status) for one in by_carl] == [
        ("POST", "/v1/sandboxes", "done", 201),
        ("DELETE", "/v1/sandboxes/{ref}", "done", 404),
        ("DELETE", "/v1/sandboxes/{ref}", "done", 200),
    ]
    assert by_carl[-1].sandboxes == [made.id] == by_carl[-3].sandboxes and by_carl[-2].ref == "box"
    assert by_carl[-2].code == "not-found" and by_carl[-1].source.startswith("127.0.0.1:")
    assert {entry.who["token"] for entry in by_carl} == {token.split("_")[1]}
    strangers = [entry for entry in entries if not entry.who]  # those of the tests before may be told late
    assert ("/v1/sandboxes", 401, "unauthorized") in [(one.route, one.status, one.code) for one in strangers]
    local = [entry for entry in entries if "uid" in entry.who and entry.source == "unix"]
    assert [entry.route for entry in local][:2] == ["/v1/tokens", "/v1/tokens/{ref}"]
    assert all((entry.who["uid"], entry.who["pid"]) == (os.geteuid(), os.getpid()) for entry in local)
    kept = (node.home.root / "log" / "audit.jsonl").read_text()
    assert "s3cr3t" not in kept and token.split("_", 2)[2] not in kept and "guess" not in kept


def test_the_audit_tells_how_it_ended_also_of_what_streams(node: OutsideNode) -> None:
    """Its answer has begun, with 200, when it fails."""
    began = time.time()
    with pytest.raises(Conflict):
        NodeClient(node.home, progress=lambda *_: None).kill("box", signal="TERM")
    told = [(one.phase, one.status, one.code, one.ref) for one in node.client.border.audit(since=began)][:2]
    assert told == [("begun", 200, "", "box"), ("ended", 409, "conflict", "box")]


def test_the_audit_is_shown_and_followed(node: OutsideNode) -> None:
    local = {"FCRUN_HOST": f"unix://{node.home.socket('fcrund')}"}
    began = time.time()
    token = node.token("read", "dora")
    assert node.fcrun(token, "kill", "box")[0] == 125
    lines = node.fcrun("", "system", "audit", "--since", str(began), **local)[1].splitlines()
    assert " unix POST /v1/tokens 201" in lines[0] and "uid " in lines[0]
    assert f"token dora ({token.split('_')[1]})" in lines[1] and "403 no-rights" in lines[1]
    rows = [json.loads(line) for line in node.fcrun("", "system", "audit", "--format", "json", **local)[1].splitlines()]
    assert rows[-1]["route"] == "/v1/system/audit" and rows[-1]["phase"] == "begun"
    following = NodeClient(node.home).border.audit(since=time.time(), follow=True)
    assert next(following).route == "/v1/system/audit"
    node.client.border.remove_token("dora")
    assert any(entry.method == "DELETE" and entry.ref == "dora" for entry in following)
    status, _, said = node.fcrun("", "system", "audit", "--since", "soon", **local)
    assert status == 125 and "--since" in said


def test_a_flood_of_strangers_is_counted(node: OutsideNode) -> None:
    """It gets few lines, so that it rotates nothing away, and none of it is forgotten."""
    began = time.time()
    for _ in range(40):
        assert node.ask("GET", "/v1/images", "x").status == 401
    lines = told = 0
    for entry in node.client.border.audit(since=began, follow=True):
        if not entry.who:
            lines, told = lines + 1, told + entry.times
        if told == 40:
            break
    assert lines < 40
