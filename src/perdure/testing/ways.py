"""Raw connections to a node that has little patience, for what no client of ours would send."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from perdure.model import SandboxSpec
from perdure.testing.outside import Answer, OutsideNode, answer, outside_node
from perdure.testing.tinynodes import new_home, root_tar

PATIENCE_S = 1
CONNECTIONS = 20
DEADLINE_S = 20.0


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


@contextmanager
def strict_node(folder: Path) -> Iterator[OutsideNode]:
    """It runs with these limits, the image ``tiny`` and a created sandbox ``box``, and ends afterwards."""
    settings = f"patience_s = {PATIENCE_S}\nconnections = {CONNECTIONS}\n"
    with outside_node(new_home(folder), settings) as node:
        node.client.import_image("tiny", root_tar())
        node.client.create(SandboxSpec(image="tiny", command=["/bin/true"], name="box"))
        yield node


@contextmanager
def way_to(node: OutsideNode, *, over_tls: bool) -> Iterator[Way]:
    """Over TLS with a token, or over the Unix socket; afterwards the node serves as before."""
    token = node.token("all") if over_tls else ""
    yield Way(node, token)
    if token:
        node.client.border.remove_token(token.split("_")[1])
    assert [info.name for info in node.client.list()] == ["box"]


def ends(link: socket.socket) -> float:
    """After how long the node ends the connection, whatever it says before."""
    began = time.monotonic()
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while link.recv(65536):
            pass
    return time.monotonic() - began


def ends_each(connect: Callable[[], socket.socket], said: Sequence[bytes]) -> None:
    """The node ends the connection whichever of these was said on it. Side by side: each takes its patience."""
    with contextlib.ExitStack() as held:
        links = [(held.enter_context(connect()), data) for data in said]
        for link, data in links:
            link.sendall(data)
        for link, data in links:
            assert ends(link) < 10 * PATIENCE_S, data
