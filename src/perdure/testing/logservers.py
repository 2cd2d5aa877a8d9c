"""A real server that is used as a log only, on each database: what tests of sessions share. A conftest imports it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from perdure.client.node import NodeClient, ensure_running
from perdure.client.server import ServerClient
from perdure.errors import PerdureError, Unavailable
from perdure.host.paths import Home
from perdure.testing.postgres import PostgresServer

__all__ = ["log_server"]

START_S = 60.0


class LogServer:
    """``perdured`` in a process of its own, on a home of its own; it can be killed and started again. database: a url,
    "" for the file in the home."""

    def __init__(self, home: Home, database: str) -> None:
        self.home, self.database = home, database
        self.client = ServerClient(home)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns once it answers."""
        home = {"PERDURE_HOME": str(self.home.root), "PERDURE_CACHE": str(self.home.cache)}
        environ = {**os.environ, **home, "PERDURE_DATABASE": self.database}
        with (self.home.root / "output").open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "perdure.server"], env=environ, stdout=output, stderr=output
            )
        deadline = time.monotonic() + START_S
        while True:
            try:
                assert self.client.status()["pid"] == self._process.pid
                return
            except Unavailable:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self.home.root / "output").read_text()[-4000:]) from None
                time.sleep(0.02)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def running(folder: Path, database: str = "") -> Iterator[LogServer]:
    home = Home(folder / "home", folder / "cache").make()
    ensure_running(home)  # before a server would start it, so that it is there to be ended
    server = LogServer(home, database)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        try:
            NodeClient(home).shutdown()
        except PerdureError:
            pass  # it has gone


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def log_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LogServer]:
    url = ""
    if request.param == "postgres":
        postgres: PostgresServer = request.getfixturevalue("postgres")
        url = postgres.new_database()
    with running(tmp_path_factory.mktemp("log"), url) as server:
        yield server
