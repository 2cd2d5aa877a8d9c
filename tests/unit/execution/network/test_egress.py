"""What ``--egress`` means."""

from __future__ import annotations

import pytest

from perdure.errors import InvalidValue
from perdure.execution.network import egress


def test_networks_and_names_are_told_apart() -> None:
    rules = egress.parse(["10.1.2.3/8", "192.0.2.1", "API.Example.org.", "*.example.org", "localhost", "none"])
    assert rules.networks == ("10.0.0.0/8", "192.0.2.1/32")
    assert rules.names == ("api.example.org", "*.example.org", "localhost")


def test_networks_that_overlap_become_one() -> None:
    assert egress.parse(["10.0.0.0/8", "10.1.0.0/16", "10.0.0.1"]).networks == ("10.0.0.0/8",)


def test_none_is_nothing_at_all() -> None:
    assert egress.parse(["none"]) == egress.Egress()


@pytest.mark.parametrize(
    "rule",
    [
        *("", "10.0.0.0/33", "10.0.0", "1.2.3.4.5", "2001:db8::/32", "::1"),
        *("a b", "-x.org", "*.*.org", "x..y", "*", "*.", "a" * 64, "x." * 127 + "x", "é.org"),
        *("https://example.org", "example.org:443"),
    ],
)
def test_what_is_neither_is_refused_by_name(rule: str) -> None:
    with pytest.raises(InvalidValue) as raised:
        egress.parse(["example.org", rule])
    assert repr(rule) in raised.value.message


def test_there_may_not_be_endless_rules() -> None:
    with pytest.raises(InvalidValue, match="more than 1000"):
        egress.parse(f"n{number}.example.org" for number in range(1001))
