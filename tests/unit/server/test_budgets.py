"""``[budgets]`` of settings.toml."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.errors import InvalidValue
from perdure.host.paths import Home
from perdure.model import Budget
from perdure.server.settings import load


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home", tmp_path / "cache").make()


def test_what_it_says_is_of_all_and_of_agents_by_name(home: Home) -> None:
    assert load(home).budgets.of(["f", "a.py:f"]) == Budget()
    (home.root / "settings.toml").write_text(
        '[budgets]\ntokens = 2_000_000\nusd = 5\n[budgets."research*"]\nusd = 20.5\n[budgets."b.py:*"]\ncalls = 3\n'
    )
    budgets = load(home).budgets
    assert budgets.of(["other", "a.py:other"]) == Budget(tokens=2_000_000, usd=5)
    assert budgets.of(["research_owls", "a.py:research_owls"]) == Budget(tokens=2_000_000, usd=20.5)
    assert budgets.of(["f", "b.py:f"]) == Budget(tokens=2_000_000, usd=5, calls=3)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[budgets]\nowls = 3", r"\[budgets\]: unknown setting 'owls'"),
        ("[budgets]\ncalls = 2.5", r"\[budgets\]: .*calls"),
        ('[budgets."x"]\nusd = -1', r'\[budgets."x"\]: budget: usd is -1'),
        ("budgets = 3", "budgets is not a table"),
    ],
)
def test_a_wrong_line_is_told(home: Home, text: str, told: str) -> None:
    (home.root / "settings.toml").write_text(text)
    with pytest.raises(InvalidValue, match=told):
        load(home)
