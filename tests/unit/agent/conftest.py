"""A real door: an HTTP server that keeps a log by key and answers the SDK's calls as ``perdure.runs.calls`` says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from perdure.agent.bundle import sdk_files


@dataclass
class Door:
    """What was asked, in order, as (key, path, body); what it answers to waits and chats; how often it hangs up."""

    input: Any = None
    waits: dict[str, dict[str, Any]] = field(default_factory=dict)  # by prompt or name
    streams: list[list[bytes]] = field(default_factory=list)
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)  # recorded ends, by key
    refusals: dict[str, tuple[int, dict[str, Any]]] = field(default_factory=dict)  # by path
    hang_ups: int = 0
    asked: list[tuple[str, str, Any]] = field(default_factory=list)
    messages: list[Any] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    port: int = 0

    def bodies(self, path: str) -> list[Any]:
        return [body for _, found, body in self.asked if found == path]

    def answer(self, key: str, path: str, body: Any) -> Any:
        if path == "begin":
            return {"run_id": "0123456789ab", "agent": "x.py:f", "input": self.input}
        if path == "step":
            if key in self.steps:
                end = self.steps[key]
                return {"status": "failed" if "error" in end else "done", **end}
            return {"status": "run", "attempt": 1, "idempotency_key": f"idem-{key}"}
        if path == "step/end":
            return self.steps.setdefault(key, body)
        if path == "wait":
            return {"kind": body["kind"], **self.waits.get(body.get("prompt") or body.get("name") or "", {})}
        if path == "wait/set":
            return {"kind": body["mode"], "timed_out": False, **self.waits[body["mode"]]}
        if path == "message":
            self.messages.append(body["message"])
        return {"messages": self.messages} if path == "messages" else {}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    door: Door

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        key = f"{self.headers['perdure-lane']}/{self.headers['perdure-ordinal']}"
        path = self.path.removeprefix("/perdure/v1/")
        with self.door.lock:
            self.door.asked.append((key, path, body))
            if self.door.hang_ups:
                self.door.hang_ups -= 1
                self.close_connection = True
                return
            if path in self.door.refusals:
                self._send(*self.door.refusals[path])
                return
            if path.startswith("/v1/"):
                pieces = self.door.streams.pop(0)
            else:
                self._send(200, self.door.answer(key, path, body))
                return
        self.send_response(200)
        is_stream = body.get("stream", False)
        self.send_header("Content-Type", "text/event-stream" if is_stream else "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in pieces:
            if piece == b"HANG UP":
                self.close_connection = True
                return
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def _send(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    made = Door()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"door": made}))
    made.port = server.server_address[1]
    monkeypatch.setenv("PERDURE_DOOR", f"127.0.0.1:{made.port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


@dataclass
class Guest:
    """Runs agents as a guest does: the bundle on PYTHONPATH, the file beside it, no other package in sight."""

    folder: Path
    door: Door

    def run(self, source: str, function: str = "f") -> subprocess.CompletedProcess[str]:
        file = self.folder / "agents" / "x.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(source)
        environ = {
            "PYTHONPATH": str(self.folder),
            "PERDURE_DOOR": os.environ["PERDURE_DOOR"],
            "PATH": os.environ["PATH"],
        }
        return subprocess.run(
            [sys.executable, "-S", "-m", "perdure.agent.run", f"{file}:{function}"],
            cwd=self.folder, env=environ, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    def result(self, source: str) -> Any:
        """What the agent's function completed with."""
        done = self.run(source)
        assert done.returncode == 0, done.stderr
        (told,) = self.door.bodies("complete")
        return told["result"]

    def error(self, source: str, function: str = "f") -> dict[str, Any]:
        """How it failed."""
        done = self.run(source, function)
        assert done.returncode == 1, done.stderr
        (told,) = self.door.bodies("fail")
        found: dict[str, Any] = told["error"]
        return found


@pytest.fixture
def guest(tmp_path: Path, door: Door) -> Guest:
    for name, content in sdk_files().items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return Guest(tmp_path, door)


def event(text: str, **more: Any) -> bytes:
    value = {"model": "m", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}], **more}
    return b"data: " + json.dumps(value).encode() + b"\n\n"


END = (
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\ndata: [DONE]\n\n'
)
