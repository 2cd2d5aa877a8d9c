"""The report of a guest's memory: what a guest sends is its own affair, it is read strictly or not at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.formats import memoryreport
from perdure.model import MemoryUse, ProcessMemory

TEXT = "memory 1 500000 400000 30000 100 50000 9000\n120 45000 python3\n77 300 sh"


def test_what_a_guest_says() -> None:
    assert memoryreport.parse(TEXT) == MemoryUse(
        total_kib=500_000,
        free_kib=400_000,
        page_cache_kib=30_000,
        shared_kib=100,
        anonymous_kib=50_000,
        kernel_kib=9000,
        processes=[
            ProcessMemory(pid=120, name="python3", anonymous_kib=45_000),
            ProcessMemory(pid=77, name="sh", anonymous_kib=300),
        ],
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "it was configured before",
        TEXT.replace("memory 1", "memory 2"),
        TEXT.replace(" 9000", ""),
        TEXT.replace("400000", "-400000"),
        TEXT.replace("400000", "٤"),
        TEXT + "\n",
        TEXT.replace("python3", "py thon3"),
        TEXT.replace("python3", "a" * 16),
        TEXT.replace("120 ", "x "),
    ],
)
def test_anything_else_is_none(text: str) -> None:
    assert memoryreport.parse(text) is None


@given(st.text() | st.lists(st.sampled_from(["memory 1", " 1", "\n", "2 3 a", "9" * 20])).map("".join))
def test_any_text_is_read_or_refused(text: str) -> None:
    found = memoryreport.parse(text)
    if found is not None:
        assert found.total_kib >= 0
