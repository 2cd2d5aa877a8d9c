"""The report of what a workload uses: read strictly or not at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.formats.usagereport import GuestUsage, parse

TEXT = "usage 1 500000 400000 12 7 8 9 10"


def test_what_a_guest_says() -> None:
    usage = parse(TEXT)
    assert usage == GuestUsage(500_000, 400_000, 12, 7, 8, 9, 10)
    assert usage.used_bytes == 100_000 << 10
    assert GuestUsage(1, 2, 0, 0, 0, 0, 0).used_bytes == 0


@pytest.mark.parametrize(
    "text", ["", "usage 2" + TEXT[7:], TEXT + " 1", TEXT[:-3], TEXT + "\n", TEXT.replace("7", "-7")]
)
def test_anything_else_is_none(text: str) -> None:
    assert parse(text) is None


@given(st.text() | st.lists(st.sampled_from(["usage 1", " 1", "\n", "9" * 20])).map("".join))
def test_any_text_is_read_or_refused(text: str) -> None:
    found = parse(text)
    assert found is None or found.used_bytes >= 0
