"""The same agent, unchanged, on either road: the whole example set in microVMs and in workers, side by side."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from perdure.cli.perdure import _daemons
from perdure.cli.perdure._image import ensure_default
from perdure.client.node import NodeClient
from perdure.client.server import ServerClient
from perdure.host.paths import Home
from perdure.model import RunState
from perdure.testing import roads

pytestmark = pytest.mark.vm


@pytest.fixture
def server(home: Home, client: NodeClient, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerClient]:
    """A server on the node's home, with an empty log and a provider that says the same each time."""
    with roads.provider() as provider:
        monkeypatch.setenv("PERDURE_PROVIDER", "openai")
        monkeypatch.setenv("OPENAI_BASE_URL", provider.url)
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        for path in home.root.glob("perdure.db*"):
            path.unlink()
        _daemons.start_server(home)
        yield ServerClient(home)
        _daemons._stop_server(home)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("agent", roads.agents(), ids=lambda agent: agent.rpartition(":")[2])
def test_an_example_does_the_same_on_both_roads(server: ServerClient, agent: str) -> None:
    replayed = roads.live(server, agent, "replay")
    restored = roads.live(server, agent, "snapshot", ensure_default())
    assert replayed.info.state is restored.info.state is RunState.COMPLETED, (replayed.info, restored.info)
    assert replayed.told == restored.told
    assert replayed.result == restored.result
    slept = any(entry.kind == "wait.started" for entry in server.entries(restored.info.id))
    assert replayed.info.snapshot is None and (restored.info.snapshot is not None or not slept)
