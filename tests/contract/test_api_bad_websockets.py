"""What a client may send over a WebSocket that it should not, to a real fcrund; without a machine."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest

from perdure.testing.outside import OutsideNode, answer
from perdure.testing.ways import PATIENCE_S, Way, ends, ends_each, strict_node, way_to

UPGRADE = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OutsideNode]:
    with strict_node(tmp_path_factory.mktemp("bad")) as node:
        yield node


@pytest.fixture(params=["tls", "unix"])
def way(request: pytest.FixtureRequest, node: OutsideNode) -> Iterator[Way]:
    with way_to(node, over_tls=request.param == "tls") as way:
        yield way


def frame(opcode: int, data: bytes, *, length: int | None = None, final: bool = True, masked: bool = True) -> bytes:
    """RFC 6455, 5.2, masked with zeros."""
    said = len(data) if length is None else length
    size = bytes((0x80 * masked | 127,)) + struct.pack(">Q", said)
    return bytes((0x80 * final | opcode,)) + size + bytes(4 if masked else 0) + data


def websocket(way: Way, path: str = "/v1/sandboxes/box/exec", more: str = "") -> socket.socket:
    link = way.connect()
    link.sendall(f"GET {path} HTTP/1.1\r\n{way.head}{UPGRADE}{more}\r\n".encode())
    return link


def upgraded(way: Way, path: str = "/v1/sandboxes/box/exec") -> socket.socket:
    link = websocket(way, path)
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


NO_FRAMES = [
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
]


def test_frames_that_are_none(way: Way) -> None:
    """The session ends; the node goes on."""
    ends_each(lambda: upgraded(way), NO_FRAMES)


def test_an_exec_that_does_not_say_what(way: Way) -> None:
    with upgraded(way) as link:
        assert ends(link) < 10 * PATIENCE_S


def test_inputs_that_are_none_end_an_attach(way: Way) -> None:
    wishes = (b"[]", b'{"resize": [1]}', b'{"resize": "x"}', b'{"signal": "WHAT"}', b"no json")
    ends_each(lambda: upgraded(way, "/v1/sandboxes/box/attach"), [frame(1, wish) for wish in wishes])
