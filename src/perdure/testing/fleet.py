"""Several perdured processes on one PostgreSQL, each with a home of its own, and a provider that counts.

Runs are on the replay road: no server has a node. What stands at its socket answers that it is there, so that no
server starts one, and none is left behind.
"""

from __future__ import annotations

import json
import os
import signal
import socketserver
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from perdure.client.server import ServerClient
from perdure.errors import Unavailable
from perdure.host.paths import Home
from perdure.testing.postgres import PostgresServer, postgres_server
from perdure.testing.will import Will

START_S = 60.0
LOOK_S = 0.02
HEARTBEAT_S, LOST_S = 0.2, 1.4


def until(true: Callable[[], Any], deadline_s: float = START_S, *, what: str = "") -> Any:
    """What ``true`` returns, once that is true; a server that is not there is asked again."""
    deadline = time.monotonic() + deadline_s
    while True:
        with suppress(Unavailable):
            if found := true():
                return found
        assert time.monotonic() < deadline, what or "it does not come true"
        time.sleep(LOOK_S)


class _Quiet(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class CountingProvider:
    """An OpenAI-compatible provider: it answers what it was asked, and counts how often (``asked``)."""

    def __init__(self) -> None:
        asked = self.asked = Counter[str]()

        class Handler(_Quiet):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                text = body["messages"][-1]["content"]
                asked[text] += 1
                message = {"role": "assistant", "content": f"answer to {text}"}
                choice = {"index": 0, "message": message, "finish_reason": "stop"}
                self.answer({"id": "1", "object": "chat.completion", "model": "tiny", "choices": [choice]})

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _NoNode(_Quiet):
    def do_GET(self) -> None:
        if self.path.startswith("/v1/events"):
            self.send_response(200)
            self.end_headers()
            self.wfile.flush()
            self.rfile.read(1)  # nothing happens here, until the server hangs up
            self.close_connection = True
        else:
            self.answer({"sandboxes": []})

    def address_string(self) -> str:
        return "server"


class _NodeSocket(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a server was killed


class Server:
    """One perdured, which can be killed, stopped and started again."""

    def __init__(self, folder: Path, environ: dict[str, str], provider_url: str, *, will: Will | None = None) -> None:
        self._will = will
        self.home = Home(folder, folder / "cache").make()
        (folder / "settings.toml").write_text(f'[providers.test]\nbase_url = "{provider_url}"\nmodel = "tiny"\n')
        self.client = ServerClient(self.home)
        self.is_stopped = False
        self.environ = {**os.environ, **environ, "PERDURE_HOME": str(folder), "PERDURE_CACHE": str(self.home.cache)}
        self._process: subprocess.Popen[bytes] | None = None
        self._node = _NodeSocket(str(self.home.socket("fcrund")), _NoNode)
        threading.Thread(target=self._node.serve_forever, daemon=True).start()

    @property
    def is_up(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        return (self.home.run / "log").read_text()

    def start(self) -> None:
        with (self.home.run / "log").open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "perdure.server"], env=self.environ, stdout=output, stderr=output
            )
        if self._will is not None:
            self._will.kill(self._process.pid)

    def up(self) -> None:
        self.start()
        until(lambda: self.client.status()["pid"] == self.pid, what=self.log[-4000:])

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def down(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait()
            self._process, self.is_stopped = None, False

    def stop(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        self.is_stopped = True

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
        self.is_stopped = False

    def close(self) -> None:
        self.kill()
        self._node.shutdown()
        self._node.server_close()


class Fleet:
    """The database, the provider, and the servers."""

    def __init__(
        self, folder: Path, database: PostgresServer, count: int, *, will: Will | None = None, **more: str
    ) -> None:
        self.database = database
        self.provider = CountingProvider()
        environ = {
            "PERDURE_DATABASE": database.url,
            "PERDURE_HEARTBEAT_S": str(HEARTBEAT_S),
            "PERDURE_LOST_S": str(LOST_S),
            **more,
        }
        self.servers = [
            Server(folder / f"server{number}", environ, self.provider.url, will=will) for number in range(count)
        ]

    def up(self) -> None:
        for server in self.servers:
            server.up()
        until(lambda: len(self.servers[0].client.servers()) == len(self.servers))

    def close(self) -> None:
        for server in self.servers:
            server.close()
        self.provider.close()


@contextmanager
def fleet(folder: Path, count: int, *, will: Will | None = None, **more: str) -> Iterator[Fleet]:
    """A database of its own, and so many servers that are up. will: of the program, where it may be killed. more:
    variables of their environment."""
    with postgres_server() as database:
        if will is not None:
            will.kill(database.pid)
            will.remove(database.folder)
        made = Fleet(folder, database, count, will=will, **more)
        try:
            made.up()
            yield made
        finally:
            made.close()
