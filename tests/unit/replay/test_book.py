"""What the log has, and whether a function goes the same way: names, occurrences, stretches between waits."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.replay.book import Book, Line, Mismatch, named


def step(name: str, seq: int, *, lane: str = "main", nth: int = 0, answer: Any = "x") -> Line:
    return [f"{lane}/step:{name}/{nth}", name, seq, "", answer]


def wait(name: str, seq: int, *, lane: str = "main", answer: Any = "x") -> Line:
    return [f"{lane}/wait:{name}/0", name, seq, "", answer]


LOG = [step("a", 1), step("b", 2), step("a", 3, nth=1), wait("signal:go", 4), step("c", 5), step("d", 6, answer=None)]


def ask(book: Book, *names: str, lane: str = "main") -> list[Any]:
    """Steps by their names, a wait as ``?NAME``; the answers, None where the server is to be asked."""
    answers = []
    for name in names:
        kind, what = ("wait", name[1:]) if name.startswith("?") else ("step", name)
        found = book.ask(lane, len(book._keys), kind, what).recorded
        answers.append(found.answer if found else None)
    return answers


def test_the_same_way_hears_what_the_log_has() -> None:
    book = Book(LOG)
    assert ask(book, "a", "b", "a", "?signal:go", "c", "d", "e", "?time") == ["x"] * 5 + [None] * 3
    book.end()


def test_between_two_waits_the_order_is_free() -> None:
    book = Book(LOG)
    assert ask(book, "b", "a", "a", "?signal:go", "d", "c") == ["x"] * 4 + [None, "x"]
    book.end()


def test_an_occurrence_is_counted_in_its_lane() -> None:
    book = Book([step("a", 1, answer=1), step("a", 2, lane="main.1", answer=2), step("a", 3, nth=1, answer=3)])
    assert ask(book, "a") == [1] and ask(book, "a", lane="main.1") == [2] and ask(book, "a") == [3]


@pytest.mark.parametrize(
    ("asked", "recorded", "wanted"),
    [
        (["z"], ("step", "a", 1), ("step", "z")),  # something new where the log is past it
        (["a", "?signal:go"], ("step", "b", 2), ("wait", "signal:go")),  # something left out before a wait
        (["a", "b", "a", "?signal:stop"], ("wait", "signal:go", 4), ("wait", "signal:stop")),
        (["a", "b", "c"], ("step", "a", 3), ("step", "c")),  # across a wait
        (["a", "b", "a", "?signal:go", "a"], None, None),  # a third of a name in the last stretch is new
        (["a", "b", "a", "?signal:go", "?time"], ("step", "c", 5), ("wait", "time")),
    ],
)
def test_another_way_names_both_sides(asked: list[str], recorded: Any, wanted: Any) -> None:
    book = Book(LOG)
    if recorded is None:
        ask(book, *asked)
        return
    with pytest.raises(Mismatch) as raised:
        ask(book, *asked)
    had, told = raised.value.recorded, raised.value.asked
    assert had is not None and told is not None
    assert (had["kind"], had["name"], had["seq"]) == recorded and (told["kind"], told["name"]) == wanted


def test_an_end_before_the_log_s_is_another_way() -> None:
    book = Book([step("a", 1), step("b", 2, lane="main.1")])
    ask(book, "a")
    with pytest.raises(Mismatch) as raised:
        book.end()
    assert raised.value.recorded == {"kind": "step", "name": "b", "seq": 2, "key": "main.1/step:b/0"}
    assert raised.value.asked is None


def test_what_was_given_up_need_not_be_asked_again() -> None:
    book = Book([wait("signal:go", 1, lane="main.1", answer={"kind": "signal", "withdrawn": True}), step("a", 2)])
    ask(book, "a")
    book.end()


def test_a_model_is_asked_the_very_same() -> None:
    book = Book([["main/chat/0", "", 1, "hash", None]])
    with pytest.raises(Mismatch, match="hash"):
        book.ask("main", 0, "chat", "", "other")


def test_a_call_that_is_asked_again_keeps_its_key() -> None:
    book = Book([])
    first = book.ask("main", 7, "step", "a")
    assert book.ask("main", 7, "step", "a") is first and book.ask("main", 8, "step", "a").ordinal == 1


def test_names_are_of_what_is_asked() -> None:
    assert named("wait", {"kind": "time", "seconds": 3}) == ("wait", "time")
    assert named("wait", {"kind": "approval", "prompt": "Go?"}) == ("wait", "approval:Go?")
    several = {"mode": "any", "waits": [{"kind": "signal", "name": "a"}, {"kind": "time", "seconds": 1}]}
    assert named("wait/set", several) == ("wait", "any:signal:a+time")
    assert named("step", {"name": "draw", "on_doubt": "ask"}) == ("step", "draw")


def test_a_key_is_short_and_has_no_odd_signs() -> None:
    book = Book([])
    lane = book.ask("main", 0, "step", "päck/ät\n" + "x" * 500).lane
    assert lane.isascii() and lane.isprintable() and lane.count("/") == 1 and len(lane) < 120
    assert book.ask("main", 1, "step", "päck/ät\n" + "x" * 501).lane != lane
