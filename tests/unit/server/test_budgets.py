"""``[budgets]`` of settings.toml."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.errors import InvalidValue
from perdure.host.paths import Home
from perdure.model import Budget, JointBudget
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


def test_what_agents_may_spend_jointly_is_beside_what_each_run_may(home: Home) -> None:
    (home.root / "settings.toml").write_text(
        '[budgets."*".all]\nper = "month"\nusd = 500\n[budgets."research*"]\nusd = 20\n'
        '[budgets."research*".all]\ncalls = 1000\n[budgets."x"]\ntokens = 5\nall = {per = "day", tokens = 50}\n'
    )
    budgets = load(home).budgets
    house = JointBudget(name="*", per="month", budget=Budget(usd=500))
    assert budgets.of(["research", "a.py:research"]) == Budget(usd=20)  # what says nothing of a run is not in its way
    assert budgets.joint_of(["research"]) == [house, JointBudget(name="research*", budget=Budget(calls=1000))]
    assert budgets.of(["x"]) == Budget(tokens=5)
    assert budgets.joint_of(["x"]) == [house, JointBudget(name="x", per="day", budget=Budget(tokens=50))]
    assert budgets.joint_of(["sh -c true"]) == [house]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[budgets]\nowls = 3", r"\[budgets\]: unknown setting 'owls'"),
        ("[budgets]\ncalls = 2.5", r"\[budgets\]: .*calls"),
        ('[budgets."x"]\nusd = -1', r'\[budgets."x"\]: budget: usd is -1'),
        ("budgets = 3", "budgets is not a table"),
        ("[budgets.x]\nall = 3", r'\[budgets."x".all\]: it is not a table'),
        ("[budgets.x.all]\nowls = 3", r'\[budgets."x".all\]: unknown setting .owls.'),
        ("[budgets.x.all]\nusd = -1", r'\[budgets."x".all\]: budget: usd is -1'),
        ('[budgets.x.all]\nper = "day"', r'\[budgets."x".all\]: it has no limit'),
        ('[budgets.x.all]\nper = "week"\nusd = 1', r'\[budgets."x".all\]: per is .week.'),
        ("[budgets.x.all]\nper = 3\nusd = 1", r'\[budgets."x".all\]: per is 3'),
        ('[budgets."a\\u0000b".all]\nusd = 1', "no name of a budget"),
        ("[budgets.all]\nper = 3", r'\[budgets."all"\]: unknown setting .per.'),
    ],
)
def test_a_wrong_line_is_told(home: Home, text: str, told: str) -> None:
    (home.root / "settings.toml").write_text(text)
    with pytest.raises(InvalidValue, match=told):
        load(home)
