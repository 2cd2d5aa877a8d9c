"""The API client against a real HTTP server on a Unix socket (Python's), and against answers that are broken."""

from __future__ import annotations

import http.server
import json
import socket
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.errors import MachineFailed
from perdure.execution.machine.api import Api


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.command, self.path, body))  # type: ignore[attr-defined]
        if "refuse" in self.path:
            answer = json.dumps({"fault_message": "no such thing"}).encode()
            self.send_response(400)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer[:5])
            self.wfile.flush()
            self.wfile.write(answer[5:])  # an answer in two pieces
        else:
            self.send_response(204)
            self.end_headers()

    do_PATCH = do_PUT  # noqa: N815

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


class Server(socketserver.UnixStreamServer):
    seen: list[tuple[str, str, dict[str, object]]]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(str(tmp_path / "api.sock"), Handler) as server:
        server.seen = []
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        yield server
        thread.join(10)


def test_requests_over_one_connection(server: Server) -> None:
    api = Api(str(server.server_address))
    api.load_snapshot("/s", "File", "/m")
    api.swap_drive("image", "image")
    with pytest.raises(MachineFailed, match=r"PUT /refuse \(400\): no such thing"):
        api.call("PUT", "/refuse", {})
    api.pause()
    api.resume()
    api.create_snapshot("Diff", "s", "m")
    api.close()
    assert server.seen == [
        (
            "PUT",
            "/snapshot/load",
            {
                "snapshot_path": "/s",
                "mem_backend": {"backend_type": "File", "backend_path": "/m"},
                "enable_diff_snapshots": True,
                "resume_vm": False,
            },
        ),
        ("PATCH", "/drives/image", {"drive_id": "image", "path_on_host": "image"}),
        ("PUT", "/refuse", {}),
        ("PATCH", "/vm", {"state": "Paused"}),
        ("PATCH", "/vm", {"state": "Resumed"}),
        ("PUT", "/snapshot/create", {"snapshot_type": "Diff", "snapshot_path": "s", "mem_file_path": "m"}),
    ]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "broke"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", "broke"),
        (b"hello\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 400 Bad\r\nContent-Length: 4\r\n\r\nnope", "nope"),
        (b"HTTP/1.1 400 Bad\r\nContent-Length: x\r\n\r\n", "not HTTP"),
    ],
)
def test_answers_that_are_broken(tmp_path: Path, answer: bytes, reason: str) -> None:
    path = str(tmp_path / "api.sock")

    def serve(listener: socket.socket) -> None:
        with listener.accept()[0] as connection:
            connection.recv(65536)
            connection.sendall(answer)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        api = Api(path)
        with pytest.raises(MachineFailed, match=reason):
            api.pause()
        api.close()
        thread.join(10)


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        Api(str(tmp_path / "api.sock"))


def test_an_answer_that_does_not_come(tmp_path: Path) -> None:
    path = str(tmp_path / "api.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        api = Api(path)
        with pytest.raises(MachineFailed, match="did not answer within"):
            api.call("PUT", "/x", {}, timeout_s=0.05)
        api.close()
