"""When schedules are due: cron in time zones, around changes of clocks, and intervals."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import InvalidValue
from perdure.runs.cron import Cron, Every

BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str, fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN, fold=fold).timestamp()


def dues(expression: str, after: float, count: int) -> list[str]:
    cron, found = Cron(expression, "Europe/Berlin"), list[str]()
    for _ in range(count):
        after = cron.after(after)
        found.append(datetime.fromtimestamp(after, BERLIN).strftime("%d %H:%M %z"))
    return found


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("60 * * * *", "minute is '60'"),
        ("0 24 * * *", "hour is '24'"),
        ("0 0 32 * *", "day-of-month is '32'"),
        ("0 0 30 2 *", "day-of-month is '30'"),
        ("0 0 * 13 *", "month is '13'"),
        ("0 0 * * funday", "day-of-week is 'funday'"),
        ("*/0 * * * *", "minute is '\\*/0'"),
        ("0 5-1 * * *", "hour is '5-1'"),
        ("0 0 * *", "has 4 fields, not 5"),
        ("0 0 0 * * *", "has 6 fields, not 5"),
        ("", "has 0 fields"),
        ("@daily", "has 1 fields"),
    ],
)
def test_nonsense_is_refused_and_the_field_is_named(expression: str, words: str) -> None:
    with pytest.raises(InvalidValue, match=words):
        Cron(expression, "UTC")


@pytest.mark.parametrize("name", ["", "Mars/Olympus", "../etc/passwd", "Europe", "/usr/share/zoneinfo/UTC"])
def test_a_time_zone_is_one_of_the_data_base(name: str) -> None:
    with pytest.raises(InvalidValue, match="no such time zone"):
        Cron("0 0 * * *", name)


@given(st.text("0123456789*/-,L#W MONJAN", max_size=20))
def test_whatever_is_written_is_read_or_refused(expression: str) -> None:
    try:
        cron = Cron(expression, "Europe/Berlin")
    except InvalidValue:
        return
    assert cron.after(1e9) > 1e9


def test_a_time_of_day_that_is_jumped_over_is_due_right_after_it() -> None:
    assert dues("30 2 * * *", at("2026-03-28 12:00"), 2) == ["29 03:00 +0200", "30 02:30 +0200"]
    assert dues("15,45 2 * * *", at("2026-03-28 12:00"), 3) == ["29 03:00 +0200", "30 02:15 +0200", "30 02:45 +0200"]


def test_a_time_of_day_that_comes_twice_is_due_the_first_time() -> None:
    expected = ["25 02:30 +0200", "26 02:30 +0100"]
    assert dues("30 2 * * *", at("2026-10-24 12:00"), 2) == expected
    assert dues("30 2 * * *", at("2026-10-25 02:10", fold=1), 1) == expected[1:]
    cron = Cron("30 2 * * *", "Europe/Berlin")
    assert cron.before(at("2026-10-25 02:40", fold=1), 1) == [at("2026-10-25 02:30")]


def test_what_is_due_every_so_often_follows_the_time_that_passes() -> None:
    assert dues("*/30 * * * *", at("2026-10-25 02:00"), 4) == [
        "25 02:30 +0200", "25 02:00 +0100", "25 02:30 +0100", "25 03:00 +0100"
    ]  # fmt: skip
    assert dues("0 * * * *", at("2026-03-29 00:30"), 3) == ["29 01:00 +0100", "29 03:00 +0200", "29 04:00 +0200"]


moments = st.datetimes(datetime(2026, 1, 1), datetime(2027, 12, 31)).map(lambda d: d.replace(tzinfo=UTC).timestamp())
expressions = st.sampled_from(
    ["*/7 * * * *", "30 2 * * *", "0 */5 * * *", "15 1,2,3 * 3,10 *", "0 0 1 * 1", "0 12 L * *"]
)


@given(expressions, st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]), moments)
def test_looking_back_finds_what_looking_forward_does(expression: str, zone: str, moment: float) -> None:
    cron = Cron(expression, zone)
    last = cron.before(moment, 3)
    assert last == sorted(last) and last[-1] <= moment < cron.after(moment)
    forward, found = last[0], []
    while (forward := cron.after(forward)) <= moment:
        found.append(forward)
    assert found == last[1:]


@given(st.floats(1, 1e6), st.floats(0, 1e9), st.floats(0, 1e7), st.integers(1, 5))
def test_intervals(every_s: float, since: float, later_s: float, count: int) -> None:
    every, moment = Every(every_s, since), since + later_s
    last = every.before(moment, count)
    assert len(last) <= count and all(since < due <= moment for due in last)
    assert moment < every.after(moment) <= moment + every_s * 1.001
    assert every.before(every.after(moment), 1) == [every.after(moment)]


@pytest.mark.parametrize("every_s", [0, -5, 0.5, float("nan"), float("inf")])
def test_an_interval_is_a_second_or_more(every_s: float) -> None:
    with pytest.raises(InvalidValue, match="every_s is"):
        Every(every_s, timedelta(0).total_seconds())
