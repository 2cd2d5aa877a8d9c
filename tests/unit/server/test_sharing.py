"""What may be set of a server beside others."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.errors import InvalidValue
from perdure.host.paths import Home
from perdure.runs.tenure import Terms
from perdure.server.sharing import load


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path, tmp_path / "cache")


def test_nothing_needs_to_be_set(home: Home) -> None:
    found = load(home, {})
    assert (found.host, found.port, found.terms) == ("127.0.0.1", 0, Terms(heartbeat_s=1.0, lost_s=5.0))
    assert found.terms.looks == 5


def test_the_file_says_so_and_the_environment_before_it(home: Home) -> None:
    (home.root / "settings.toml").write_text('[servers]\nlisten = "10.0.0.5:8750"\nheartbeat_s = 2\nlost_s = 10\n')
    found = load(home, {"PERDURE_HEARTBEAT_S": "0.5", "PERDURE_LISTEN": "[::1]:0"})
    assert (found.host, found.port, found.terms) == ("::1", 0, Terms(heartbeat_s=0.5, lost_s=10.0))


@pytest.mark.parametrize(
    ("text", "environ", "told"),
    [
        ("[servers]\nlost = 1", {}, "unknown setting 'lost'"),
        ("[servers]\nheartbeat_s = 0", {}, "heartbeat_s is 0"),
        ("[servers]\nheartbeat_s = true", {}, "heartbeat_s is True"),
        ("[servers]\nheartbeat_s = 3.0", {}, "less than two heartbeats"),
        ("[servers]\nlisten = 'here'", {}, "listen is 'here'"),
        ("", {"PERDURE_LOST_S": "soon"}, "PERDURE_LOST_S is 'soon'"),
        ("servers = 1", {}, "servers is not a table"),
    ],
)
def test_what_is_wrong_is_named(home: Home, text: str, environ: dict[str, str], told: str) -> None:
    (home.root / "settings.toml").write_text(text)
    with pytest.raises(InvalidValue, match=told):
        load(home, environ)
