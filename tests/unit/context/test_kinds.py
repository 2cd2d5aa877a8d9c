"""The list of kinds is whole: what is written is in it, and what is in it is described."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from perdure.context.kinds import KINDS

ROOT = Path(__file__).parents[3]


def written() -> set[str]:
    """The kinds that stand in calls of ``NewEntry``."""
    found = set()
    for path in (ROOT / "src" / "perdure").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "NewEntry":
                kinds = [word.value for word in node.keywords if word.arg == "kind"]
                found.update(kind.value for kind in kinds if isinstance(kind, ast.Constant))
    return found


def test_each_kind_that_is_written_is_known() -> None:
    assert len(written()) > 15
    assert written() - set(KINDS) == set()


def test_each_kind_is_described() -> None:
    rows = "".join(
        line.split(" | ")[0]
        for page in ("context-log", "agent-calls")
        for line in (ROOT / "docs" / "formats" / f"{page}.md").read_text().splitlines()
        if line.startswith("| `")
    )
    assert set(KINDS) - set(re.findall(r"`([a-z.]+)`", rows)) == set()
