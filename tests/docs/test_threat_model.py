"""Each claim of the threat model names a test, and each test that it names exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "threat-model.md").read_text()


def known() -> set[str]:
    sources = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    return {name for source in sources for name in re.findall(r"^(?:async )?def (test_\w+)\(", source, re.MULTILINE)}


def test_each_named_test_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 50
    assert named - known() == set()


def test_each_row_names_a_test() -> None:
    rows = [
        line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith(("| ---", "| it tries"))
    ]
    rows = [line for line in rows if not line.startswith("| somebody tries")]
    assert [line for line in rows if not re.search(r"`test_\w+`", line.split(" | ")[-1])] == []
