"""Pages that say which test holds what they claim: each of these is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
PAGES = sorted(page for page in (ROOT / "docs").glob("*.md") if NAMED.search(page.read_text()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tests_that_a_page_names_are_there(page: Path) -> None:
    named = NAMED.findall(page.read_text())
    missing = [f"{file}::{name}" for file, name in named if name not in _tests(ROOT / file)]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_row_names_one(page: Path) -> None:
    rows = [line for line in page.read_text().splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    heads = [row for row in rows if row.rstrip().endswith("| test |")]
    assert [row for row in rows if row not in heads and not NAMED.search(row)] == []


def test_there_is_such_a_page() -> None:
    assert "docker.md" in [page.name for page in PAGES]


def _tests(file: Path) -> set[str]:
    if not file.exists():
        return set()
    tree = ast.parse(file.read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in tree.body if isinstance(node, kinds) and node.name.startswith("test_")}
