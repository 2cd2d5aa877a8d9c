"""The page of results: each program writes its own section, and says of what revision it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.testing.crash import page
from perdure.testing.crash.parts import PARTS
from perdure.testing.crash.vmlife import VmOutcome, VmWish
from perdure.testing.crash.vms import Asked, VmMatrix, missed


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
    wishes = matrix.asked.wishes()
    assert [wish.part for wish in wishes] == list(PARTS)
    first = VmOutcome(wishes[0], killed=[("VM", "running", "running"), ("VM", "thinking", "running")])
    second = VmOutcome(wishes[2], ["something"], [("VM", "", "running"), ("pager", "resuming", "running")])
    last = VmOutcome(VmWish(kills=5), killed=[("node", "", "running"), ("VM", "", "waiting")])
    matrix.outcomes += [first, second, last]
    table = matrix.table()
    assert "| running | a step of its program is on its way to the world outside | 1 | - | - | - | - |" in table
    assert "| a model thinks | 1 | - | - | - | - |" in table
    assert "| its machine is being restored | - | - | (running) | - | - |" in table
    assert "\n| | wrong in these lives | 0 | 0 | 1 | 0 | 0 |\n" in table
    assert "\n| SQLite | 1 | 0 | 1 | 0 | 0 | 1 | 0 |\n" in table
    assert "suspended" in missed(VmOutcome(wishes[3]))
    assert missed(first) == ["starting", "resuming", "waiting", "suspending", "recovering"]


def test_what_is_asked_for_by_the_environment() -> None:
    asked = Asked.of({"CRASH_VMS": "0", "CRASH_STATES": "running suspended", "CRASH_PARTS": "node VM"})
    assert asked.wishes() == [VmWish("VM", ("suspended", "running")), VmWish("node", ("suspended", "running"))]
    assert not asked.is_whole
    assert not Asked.of({"CRASH_VMS": "no"}).is_wanted
