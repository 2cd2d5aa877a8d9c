"""The page of results: each program writes its own section, and says of what revision it is."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import pytest

from perdure.errors import Unavailable
from perdure.host.paths import Home
from perdure.testing.crash import page
from perdure.testing.crash.atrandom import AtRandom, Kill
from perdure.testing.crash.ledger import WebLedger
from perdure.testing.crash.listener import Listener
from perdure.testing.crash.parts import PARTS, Parts
from perdure.testing.crash.provider import CountingProvider
from perdure.testing.crash.serving import Serving
from perdure.testing.crash.vmlife import Ground, VmLife, VmOutcome, VmWish
from perdure.testing.crash.vms import Asked, VmMatrix, missed
from perdure.testing.house import DEADLINE_S


def test_a_section_is_replaced_and_the_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "PAGE", tmp_path / "page.md")
    first, *_, last = page.TITLES.values()
    page.write(last, "vms\n\n| a |\n| --- |\n")
    page.write(first, "server")
    page.write(last, "other vms\n")
    text = page.PAGE.read_text()
    assert text == f"{page.HEAD}\n## {first}\n\nserver\n\n## {last}\n\nother vms\n"


def test_the_table_of_parts_says_who_died_in_which_state() -> None:
    matrix = VmMatrix(Asked.of({"CRASH_VMS": "10"}))
    wishes = matrix.asked.wishes("postgres")
    assert [wish.part for wish in wishes] == list(PARTS)
    first = VmOutcome(wishes[0], killed=[("VM", "running", "running"), ("VM", "thinking", "running")])
    second = VmOutcome(wishes[2], ["something"], [("VM", "", "running"), ("pager", "resuming", "running")])
    matrix.outcomes += [first, second, VmOutcome(VmWish(), killed=[("node", "", "running")])]
    matrix.wrong += ["postgres, pager: something", "sqlite, VM: something else"]
    [(title, table)] = matrix.tables("postgres").items()
    assert title == "states postgres"
    assert "2 lives, 4 kills, 1 wrong." in table
    assert "| running | a step of its program is on its way to the world outside | 1 | - | - | - | - |" in table
    assert "| a model thinks | 1 | - | - | - | - |" in table
    assert "| its machine is being restored | - | - | (running) | - | - |" in table
    assert "\n| | wrong in these lives | 0 | 0 | 1 | 0 | 0 |\n" in table
    assert "suspended" in missed(VmOutcome(wishes[3]))
    assert missed(first) == ["starting", "resuming", "waiting", "suspending", "recovering"]


def test_the_table_of_instants_says_in_which_state_each_run_was_that_was_hit(tmp_path: Path) -> None:
    matrix = VmMatrix(Asked.of({"CRASH_VMS": "200", "CRASH_DATABASE": "sqlite"}), result=tmp_path / "result.json")
    lives = [life(tmp_path, seed) for seed in range(3)]
    lives[0].people.note("run.running", 10.0)
    lives[0].people.note("run.suspended", 20.0)
    lives[1].people.note("run.starting", 5.0)
    matrix.kills.append(Kill("sqlite", "VM", 11.0, lives[:1]))
    matrix.kills.append(Kill("sqlite", "server", 20.5, lives))
    matrix.outcomes += [VmOutcome(one.wish) for one in lives]
    matrix.wrong += ["sqlite: a server ended by itself", "sqlite, random 1: something", "postgres, random 1: more"]
    table = matrix.tables("sqlite")["random sqlite"]
    assert "3 lives, 2 kills, 2 wrong." in table
    assert "\n| queued | it was asked for | - | - | - | - | 1 |\n" in table
    assert "\n| starting | its machine is being made | - | - | - | - | 1 |\n" in table
    assert "\n| running | its program goes on | 1 | - | - | - | - |\n" in table
    assert "\n| suspended | it sleeps | - | - | - | - | 1 |\n" in table
    assert "\n| | kills on SQLite | 1 | 0 | 0 | 0 | 1 |\n" in table
    hit = json.loads(matrix.to_json())["kills"][1]["hit"]
    assert hit == {"random 0": "suspended", "random 1": "starting", "random 2": "queued"}


def test_what_was_cut_off_is_gone_on_with(tmp_path: Path) -> None:
    first = VmMatrix(Asked.of({}))
    lives = [life(tmp_path, seed) for seed in range(2)]
    first.outcomes += [VmOutcome(VmWish("VM", ("running",)), ["this"], [("VM", "running", "running")], 1.5)]
    first.outcomes += [VmOutcome(lives[0].wish)]  # the other one had not ended
    first.kills += [Kill("sqlite", "VM", 11.0, lives[:1]), Kill("sqlite", "server", 12.0, lives)]
    first.wrong += ["sqlite, VM: this"]
    then = VmMatrix(Asked.of({}))
    then.go_on(first.to_json())
    assert (then.outcomes, then.wrong) == (first.outcomes, first.wrong)
    assert [(kill.part, kill.states) for kill in then.kills] == [("VM", {"random 0": "queued"})]
    for text in (first.to_json().replace("revision ", "revision of "), '{"lives": [], "wrong": ["older"]}'):
        other = VmMatrix(Asked.of({}))
        other.go_on(text)
        assert not other.outcomes and not other.wrong


def test_a_run_whose_machine_dies_again_and_again_is_let_alone_until_its_program_does_something(tmp_path: Path) -> None:
    one = life(tmp_path, 0)
    for moment in (1.0, 2.0, 3.0):
        one.people.note("run.recovering", moment)
        one.died("VM", "", moment)
    one.died("server", "", 4.0)
    assert one.deaths_in_a_row == 3
    one.people.note("replayed", 5.0)
    assert one.deaths_in_a_row == 0
    one.died("pager", "", 6.0)
    assert one.deaths_in_a_row == 1


async def test_where_nobody_can_be_killed_any_more_the_lives_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []

    async def kill_on(self: AtRandom, chance: random.Random) -> None:
        raise Unavailable("nobody answers below the line")

    async def live_on(self: AtRandom, most: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(most)

    monkeypatch.setattr(AtRandom, "_kill_on", kill_on)
    monkeypatch.setattr(AtRandom, "_live_on", live_on)
    at_random = AtRandom(ground(tmp_path), "sqlite", 2, [], [], [], lambda text, wrong: None)
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(Unavailable):
            await at_random.run(3)
    assert ended == [3, 3]


def ground(folder: Path) -> Ground:
    """Where nothing runs."""
    home = Home(folder / "home", folder / "cache")
    serving = Serving(home, folder / "log", {}, [], [])
    return Ground(home, "image", CountingProvider(), Listener(), WebLedger(home), serving, [], Parts(home))


def life(folder: Path, seed: int) -> VmLife:
    """One that is not lived."""
    return VmLife(ground(folder), VmWish(seed=seed))


def test_what_is_asked_for_by_the_environment() -> None:
    environ = {"CRASH_VMS": "0", "CRASH_STATES": "running suspended", "CRASH_PARTS": "node VM"}
    asked = Asked.of({**environ, "CRASH_DATABASE": "postgres", "CRASH_AT_ONCE": "2"})
    states = ("suspended", "running")
    assert asked.wishes("postgres") == [VmWish("VM", states, "postgres"), VmWish("node", states, "postgres")]
    assert (asked.databases, asked.at_once) == (("postgres",), 2)
    assert asked.titles("postgres") == []
    assert not Asked.of({"CRASH_VMS": "no"}).is_wanted
    at_random = Asked.of({"CRASH_VMS": "200", "CRASH_STATES": "no"})
    assert at_random.wishes("sqlite") == []
    assert [at_random.titles(database) for database in at_random.databases] == [["random sqlite"], ["random postgres"]]
    assert Asked.of({}).titles("sqlite") == ["states sqlite"]
