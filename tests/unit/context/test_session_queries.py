"""Sessions are looked up by indexes: no question costs more the more sessions, or entries, there are."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from perdure.context import listing, queries, sqlite
from perdure.context.log import NO_TAGS
from perdure.context.sqlite import schema

AT = {"run_id": "a", "branch": 1, "after": 0, "upto": 9, "limit": 1, "kind": None, "key": "k"}
SOME = {"run_id": "a", "branch": None, "key0": "k", "key1": "l"}


def heads_query(tags: dict[str, str]) -> tuple[str, dict[str, Any]]:
    nothing = dict.fromkeys(("name", "parent", "below", "forks_of", "ids", "released", "pruned", "beyond", "limit"))
    return listing.heads_query(states=[listing.SESSION], tags=tags or NO_TAGS, prefix="", newest=False, **nothing)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("query", "values", "wanted"),
    [
        (queries.HEAD_OF_KEY, {"key": "session:a"}, "r USING INDEX sqlite_autoindex_runs_2 (key=?)"),
        (schema.BY_KEY.newest, AT, "c USING PRIMARY KEY (run_id=? AND key=? AND branch=? AND seq>? AND seq<?)"),
        (schema.BY_KEY.newest, AT, "e USING INDEX sqlite_autoindex_entries_1 (run_id=? AND branch=? AND seq>?"),
        (queries.OWN_NEWEST, AT, "e USING INDEX sqlite_autoindex_entries_1 (run_id=? AND branch=? AND seq>?"),
        (schema.BY_KEY.some(2), SOME, "c USING PRIMARY KEY (run_id=? AND key=? AND branch=? AND seq<?)"),
        (schema.BY_KEY.some(2), SOME, "e USING INDEX sqlite_autoindex_entries_1 (run_id=? AND branch=? AND seq>?"),
        (*heads_query({"a": "b"}), "t USING PRIMARY KEY (name=? AND value=?)"),
        (*heads_query({"a": "b"}), "r USING INDEX sqlite_autoindex_runs_1 (run_id=?)"),
        (*heads_query({}), "r USING INDEX runs_by_state (state=?)"),
    ],
)
async def test_it_uses_its_index(tmp_path: Path, query: str, values: dict[str, Any], wanted: str) -> None:
    log = await sqlite.open(tmp_path / "log.db")
    await log.close()
    with sqlite3.connect(tmp_path / "log.db") as database:
        plan = [row[3] for row in database.execute("EXPLAIN QUERY PLAN " + query, values)]
    database.close()
    assert any(wanted in step for step in plan), plan
