"""Runs in real microVMs for tests: a server of their own on a node's home, with the offline model or a scripted one."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from perdure.cli.perdure import _daemons
from perdure.cli.perdure._image import ensure_default
from perdure.client.node import NodeClient
from perdure.client.server import ServerClient
from perdure.gateway.offline_process import OfflineProcess
from perdure.host.paths import Home
from perdure.model import Entry, RunInfo, RunState
from perdure.testing import processes
from perdure.testing.aside import aside
from perdure.testing.scripted import ScriptedProvider

DEADLINE_S = 180.0


class Run:
    """A run, its server and its node."""

    def __init__(self, home: Home, info: RunInfo) -> None:
        self.home = home
        self.id = info.id
        self.server = ServerClient(home)
        self.node = NodeClient(home)

    def wait_for(self, kind: str, count: int = 1, *, after: int = 0) -> Entry:
        """The ``count``-th entry of a kind beyond position ``after``."""
        seen = 0
        for entry in self.server.entries(self.id, after=after, follow=True):
            seen += entry.kind == kind
            if seen == count:
                return entry
        raise AssertionError(f"no {kind} number {count}; the run is {self.info()}")

    def info(self) -> RunInfo:
        return self.server.get(self.id)

    def kinds(self) -> list[str]:
        return [entry.kind for entry in self.server.entries(self.id)]

    def ends(self, deadline_s: float = DEADLINE_S) -> RunInfo:
        info = self.server.get(self.id, wait_s=deadline_s)
        assert info.state in (RunState.COMPLETED, RunState.FAILED, RunState.CANCELLED), info
        return info

    def is_gone(self) -> bool:
        """Its sandbox was removed."""
        deadline = time.monotonic() + DEADLINE_S
        while any(info.spec.labels.get("perdure.run") == self.id for info in self.node.list()):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True


@pytest.fixture
def server(home: Home, client: NodeClient, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerClient]:
    """A server on the node's home, with an empty log and the offline model, whatever keys this shell has."""
    monkeypatch.setenv("PERDURE_PROVIDER", "offline")
    for name in [name for name in os.environ if name.startswith("OPENAI_")]:
        monkeypatch.delenv(name)
    for path in home.root.glob("perdure.db*"):
        path.unlink()
    image = ensure_default()
    assert image
    _daemons.start_server(home)
    yield ServerClient(home)
    _daemons._stop_server(home)
    OfflineProcess(home).stop()


@pytest.fixture
def start_run(home: Home, server: ServerClient) -> Callable[..., Run]:
    def start(**asked: Any) -> Run:
        return Run(home, server.start(**{"image": ensure_default(), **asked}))

    return start


@dataclass(frozen=True)
class Scripted:
    """A server whose provider, of both APIs, a test scripts; ``do`` does something in the provider's thread."""

    home: Home
    server: ServerClient
    provider: ScriptedProvider
    do: Callable[[Callable[[], Any]], Any]

    def start(self, **asked: Any) -> Run:
        return Run(self.home, self.server.start(**asked))


@pytest.fixture
def scripted(home: Home, client: NodeClient, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scripted]:
    """On the node's home, with an empty log."""
    provider = ScriptedProvider()
    with aside(provider) as do:
        monkeypatch.setenv("PERDURE_PROVIDER", "openai")
        monkeypatch.setenv("OPENAI_BASE_URL", provider.url)
        monkeypatch.setenv("ANTHROPIC_BASE_URL", provider.url.removesuffix("/v1"))
        for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        for path in home.root.glob("perdure.db*"):
            path.unlink()
        _daemons.start_server(home)
        yield Scripted(home, ServerClient(home), provider, do)
        _daemons._stop_server(home)


def kill_server(home: Home) -> None:
    pid = int(ServerClient(home).status()["pid"])
    os.kill(pid, signal.SIGKILL)
    assert processes.ends(pid, DEADLINE_S)
    _daemons.start_server(home)
