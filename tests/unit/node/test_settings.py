"""What a person may set of a node."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.errors import InvalidValue
from perdure.host.paths import Home
from perdure.node import settings


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path, tmp_path / "cache")


def test_the_environment_comes_before_the_file(home: Home) -> None:
    assert settings.load(home, {}).frames_bytes == 4 << 30
    (home.root / "settings.toml").write_text("[providers.x]\n[node]\nframes_mib = 7\n")
    assert settings.load(home, {}).frames_bytes == 7 << 20
    assert settings.load(home, {"PERDURE_FRAMES_MIB": "9"}).frames_bytes == 9 << 20
    assert settings.load(home, {}).disks_bytes == 16 << 30
    assert settings.load(home, {"PERDURE_DISKS_MIB": "0"}).disks_bytes == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[node", "is not TOML"),
        ("node = 3", "node is not a table"),
        ("[node]\nframes = 3", "unknown setting 'frames'"),
        ("[node]\nframes_mib = -1", r"settings.toml: \[node\]: frames_mib is -1"),
        ("[node]\nframes_mib = true", "frames_mib is True"),
        ("[node]\nframes_mib = '9'", "frames_mib is '9'"),
        ("[nodes]\nframes_mib = 9", r"unknown table \[nodes\]"),
        ("frames_mib = 9", "unknown setting 'frames_mib'"),
        ("[node]\ngroup = 9", "group is 9: not a text"),
        ("[node]\nmemory_overcommit = '4'", "memory_overcommit is '4'"),
    ],
)
def test_a_wrong_line_is_named(home: Home, text: str, words: str) -> None:
    (home.root / "settings.toml").write_text(text)
    with pytest.raises(InvalidValue, match=words):
        settings.load(home, {})


@pytest.mark.parametrize("text", ["-1", "1.5", "much", "\N{SUPERSCRIPT TWO}", "99999999999999"])
def test_a_wrong_variable_is_named(home: Home, text: str) -> None:
    with pytest.raises(InvalidValue, match="PERDURE_FRAMES_MIB"):
        settings.load(home, {"PERDURE_FRAMES_MIB": text})
