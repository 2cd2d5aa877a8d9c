"""A node that listens on TCP, as clients on other machines meet it."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from perdure.client import place
from perdure.client.node import NodeClient, ensure_running
from perdure.host.paths import Home

DEADLINE_S = 180.0  # a first start makes a template, in an emulated host on a busy machine


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, object]:
        found = json.loads(self.body)
        assert isinstance(found, dict)
        return found

    @property
    def code(self) -> str:
        error = self.json["error"]
        assert isinstance(error, dict) and error["message"]
        return str(error["code"])


@dataclass(frozen=True)
class OutsideNode:
    """``client``: over the Unix socket."""

    home: Home
    client: NodeClient
    host: str
    port: int
    fingerprint: str

    def environment(self, token: str) -> dict[str, str]:
        """What tells fcrun to go there."""
        return {
            "PERDURE_HOME": str(self.home.root / "of nobody"),
            "FCRUN_HOST": f"tcp://{self.host}:{self.port}",
            "FCRUN_TOKEN": token,
            "FCRUN_FINGERPRINT": self.fingerprint,
        }

    def token(self, scope: str = "own", name: str = "", expires_s: float | None = None) -> str:
        return self.client.border.create_token(scope=scope, name=name, expires_s=expires_s)[1]

    def reached_with(self, token: str) -> NodeClient:
        """A client over TCP."""
        return NodeClient(self.home, http=place.transport(self.environment(token)))

    def fcrun(self, token: str, *argv: str, **more: str) -> tuple[int, str, str]:
        """fcrun over TCP: status, stdout, stderr."""
        done = subprocess.run(
            [sys.executable, "-m", "perdure.cli.fcrun", *argv],
            env={**os.environ, **self.environment(token), **more},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    def connect(self) -> ssl.SSLSocket:
        """Bytes over TLS."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context.wrap_socket(socket.create_connection((self.host, self.port), DEADLINE_S))

    def local(self) -> socket.socket:
        """Bytes over the Unix socket."""
        link = socket.socket(socket.AF_UNIX)
        link.settimeout(DEADLINE_S)
        link.connect(str(self.home.socket("fcrund")))
        return link

    def ask(self, method: str, path: str, token: str | None, body: bytes | None = None, **headers: str) -> Answer:
        """One request over TCP, in plain HTTP, for what the typed client never sends."""
        with self.connect() as link:
            given = {name.replace("_", "-"): value for name, value in headers.items()}
            if token is not None:
                given["Authorization"] = f"Bearer {token}"
            if body is not None:
                given["Content-Length"] = str(len(body))
            head = "".join(f"{name}: {value}\r\n" for name, value in given.items())
            link.sendall(f"{method} {path} HTTP/1.1\r\nHost: node\r\n{head}\r\n".encode() + (body or b""))
            return answer(link)


def answer(link: socket.socket) -> Answer:
    """What a connection answers; the body by its Content-Length, else to the end."""
    data = b""
    while b"\r\n\r\n" not in data:
        if not (piece := link.recv(65536)):
            raise EOFError(f"the connection ended after {data!r}")
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    wanted = int(headers["content-length"]) if "content-length" in headers else None
    while wanted is None or len(rest) < wanted:
        if not (piece := link.recv(65536)):
            break
        rest += piece
    return Answer(int(first.split()[1]), headers, rest)


@contextmanager
def outside_node(home: Home, settings: str = "") -> Iterator[OutsideNode]:
    """It runs meanwhile. settings: more lines of its table [node]."""
    (home.root / "settings.toml").write_text(f'[node]\nlisten = "127.0.0.1:0"\n{settings}')
    ensure_running(home)
    client = NodeClient(home)
    try:
        told = client.system()
        host, _, port = told["listen"].rpartition(":")
        yield OutsideNode(home, client, host, int(port), told["fingerprint"])
    finally:
        client.shutdown()
