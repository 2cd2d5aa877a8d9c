"""The command line starts at once: what takes long to import is not imported by what only asks a node."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {
    "asyncio", "ssl", "http.client", "email", "urllib.request", "urllib3", "requests", "aiohttp", "wsproto", "h11",
    "subprocess", "tempfile", "logging", "random", "secrets", "hashlib", "tarfile", "sqlite3", "difflib", "yaml",
    "perdure.cli.fcrun._template", "perdure.client.server", "perdure.client.websocket", "perdure.execution",
    "perdure.host.progress",
}  # fmt: skip
FOR_SESSIONS = {"wsproto", "h11", "perdure.client.websocket", "random", "secrets", "hashlib"}  # of a WebSocket

# What the command imports by the time it has asked its node, which is a socket here that says nothing of use.
PROGRAM = r"""
import json, os, socket, sys, threading
from pathlib import Path

home = Path(sys.argv[1])
(home / "run").mkdir(parents=True)
listening = socket.socket(socket.AF_UNIX)
listening.bind(str(home / "run" / "fcrund.sock"))
listening.listen(8)
before = set(sys.modules)


def answer(link):
    asked = link.recv(65536).split(b"\r\n")[0].decode()
    body = b"[]" if "/v1/sandboxes?" in asked else b"{}" if "/v1/system" in asked else b""
    status = "200 OK" if body or "/logs" in asked else "404 Not Found"
    body = body or (b"" if "/logs" in asked else b'{"error": {"code": "not-found", "message": "no"}}')
    link.sendall(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    link.close()


def serve():
    while True:
        answer(listening.accept()[0])


threading.Thread(target=serve, daemon=True).start()
os.environ["PERDURE_HOME"] = str(home)
from perdure.cli import fcrun

status = fcrun.main(sys.argv[2:])
print(json.dumps([status, sorted(set(sys.modules) - before)]))
"""


def imported(home: str, *argv: str) -> tuple[int, set[str]]:
    """The command's exit status, and what it imported."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, home, *argv], capture_output=True, text=True, timeout=60)
    status, modules = json.loads(done.stdout.splitlines()[-1])
    return status, set(modules)


@pytest.mark.parametrize("argv", [("ps",), ("ps", "-a", "-f", "status=exited"), ("logs", "box"), ("images", "-q")])
def test_what_only_asks_imports_little(tmp_path_factory: pytest.TempPathFactory, argv: tuple[str, ...]) -> None:
    home = tmp_path_factory.mktemp("h", numbered=True)
    _, modules = imported(str(home / "x"), *argv)
    assert "perdure.client.node" in modules  # it came to ask
    assert modules & HEAVY == set()


@pytest.mark.parametrize("argv", [("exec", "box", "true"), ("run", "--rm", "image", "true")])
def test_sessions_import_little_more(tmp_path_factory: pytest.TempPathFactory, argv: tuple[str, ...]) -> None:
    home = tmp_path_factory.mktemp("h", numbered=True)
    status, modules = imported(str(home / "x"), *argv)
    assert status == 125 and "perdure.client.node" in modules
    assert modules & (HEAVY - FOR_SESSIONS) == set()


def test_help_asks_nobody(tmp_path_factory: pytest.TempPathFactory) -> None:
    status, modules = imported(str(tmp_path_factory.mktemp("h") / "x"), "run", "--help")
    assert status == 0 and "perdure.client.node" not in modules
