"""How often and how long a store is asked again."""

from __future__ import annotations

import email.utils
import time

import pytest
import urllib3

from perdure.errors import Unavailable
from perdure.execution.registry.retry import Patience, Transient, retried
from perdure.execution.registry.wire import _retry_after_s


def failing(times: int, after_s: float = 0.0) -> tuple[list[float], Patience]:
    pauses: list[float] = []
    return pauses, Patience(tries=times, pause=pauses.append)


def test_pauses_grow_and_are_bounded() -> None:
    pauses, patience = failing(10)

    def never() -> None:
        raise Transient("it rains")

    with pytest.raises(Unavailable, match=r"the store: it rains \(10 tries\)"):
        retried("the store", never, patience)
    assert len(pauses) == 9
    assert 0.05 <= pauses[0] <= 0.1
    assert all(pause <= 5.0 for pause in pauses)
    assert pauses[-1] > 2.0


def test_the_first_success_ends_it() -> None:
    pauses, patience = failing(5)
    results = iter([Transient("no"), Transient("not yet", 2.0), Transient("in an hour", 3600.0), None])

    def sometimes() -> str:
        result = next(results)
        if result is not None:
            raise result
        return "yes"

    assert retried("the store", sometimes, patience) == "yes"
    assert pauses[1:] == [2.0, 5.0]  # what it asks for, but not for ever


def test_what_is_not_transient_is_told_at_once() -> None:
    pauses, patience = failing(5)

    def broken() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        retried("the store", broken, patience)
    assert pauses == []


def asked(text: str) -> float:
    return _retry_after_s(urllib3.HTTPResponse(headers={"Retry-After": text}))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("", 0), ("7", 7), ("0.5", 0.5), ("-3", 0), ("soon", 0), ("nan", 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0)],
)
def test_retry_after(text: str, seconds: float) -> None:
    assert asked(text) == seconds


def test_retry_after_a_date() -> None:
    assert 50 < asked(email.utils.formatdate(time.time() + 100, usegmt=True)) <= 101
