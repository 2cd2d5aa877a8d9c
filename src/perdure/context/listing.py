"""By what runs are listed, and the queries for it. Pure.

A run's summary is its owner's; of these fields the log keeps a copy in columns, so that no list reads all summaries:
``state``, ``parent`` (the id of a run), ``released`` (its owner is done with it), ``request.name`` and ``request.tags``
(names and values, as the run was created with).

Sessions (``context.sessions``) are rows beside the runs; no list of runs has them, unless their state is asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from perdure.context.queries import HEAD

SESSION = "session"
GONE = "session.gone"  # it was deleted, and forks share its entries
_NO_RUNS = f"('{SESSION}', '{GONE}')"


class Listed(NamedTuple):
    """The columns, in their order in the tables."""

    state: str
    name: str
    parent: str | None
    released: int  # 0 or 1


def listed(value: Any) -> Listed:
    of: Mapping[str, Any] = value if isinstance(value, dict) else {}
    parent = of.get("parent")
    return Listed(
        state=_text(of.get("state")),
        name=_text(_request(of).get("name")),
        parent=_text(parent) or None,
        released=int(of.get("released") is True),
    )


def tags(value: Any) -> dict[str, str]:
    found = _request(value if isinstance(value, dict) else {}).get("tags")
    return {_text(name): _text(what) for name, what in found.items()} if isinstance(found, dict) else {}


def _request(of: Mapping[str, Any]) -> Mapping[str, Any]:
    request = of.get("request")
    return request if isinstance(request, dict) else {}


def _text(value: Any) -> str:
    """What every database can hold."""
    text = value if isinstance(value, str) else ""
    return text.encode("utf-8", "replace").decode().replace("\0", "?")


def heads_query(
    *,
    states: Collection[str] | None,
    name: str | None,
    parent: str | None,
    below: Collection[str] | None,
    forks_of: Collection[str] | None,
    tags: Mapping[str, str],
    prefix: str,
    ids: Collection[str] | None,
    released: bool | None,
    pruned: bool | None,
    beyond: str | None,
    newest: bool,
    limit: int | None,
) -> tuple[str, dict[str, Any]]:
    """See ``ContextLog.heads``."""
    parts, values = [], dict[str, Any]()
    state = "r.state || ''" if tags else "r.state"  # by an index only where there is no better one
    if states is not None:
        values |= {f"state{number}": state for number, state in enumerate(states)}
        parts.append(f"{state} IN ({', '.join(f':{slot}' for slot in values) or 'NULL'})")
    else:
        parts.append(f"{state} NOT IN {_NO_RUNS}")
    if ids is not None:
        slots = {f"id{number}": run_id for number, run_id in enumerate(ids)}
        parts.append(f"r.run_id IN ({', '.join(f':{slot}' for slot in slots) or 'NULL'})")
        values |= slots
    if below is not None:
        slots = {f"below{number}": run_id for number, run_id in enumerate(below)}
        given = ", ".join(f":{slot}" for slot in slots) or "NULL"
        children = f"SELECT run_id FROM runs WHERE parent IN ({given})"
        forks = f"SELECT run_id FROM branches WHERE parent_run IN ({given})"
        parts.append(f"r.run_id IN ({children} UNION ALL {forks})")
        values |= slots
    if forks_of is not None:
        slots = {f"forked{number}": run_id for number, run_id in enumerate(forks_of)}
        given = ", ".join(f":{slot}" for slot in slots) or "NULL"
        parts.append(f"r.run_id IN (SELECT run_id FROM branches WHERE parent_run IN ({given}))")
        values |= slots
    if name is not None:
        parts.append("r.name = :name")
        values["name"] = name
    if parent is not None:
        parts.append("r.parent = :parent")
        values["parent"] = parent
    if released is not None:
        parts.append("r.released = :released")
        values["released"] = int(released)
    if pruned is not None:
        parts.append("r.pruned = :pruned")
        values["pruned"] = int(pruned)
    if prefix:
        parts.append("r.run_id >= :prefix AND r.run_id < :prefix_end")
        values |= {"prefix": prefix, "prefix_end": prefix + "\U0010ffff"}
    for number, (tag, value) in enumerate(tags.items()):
        where = f"t.name = :tag{number} AND t.value = :tag_value{number}"
        parts.append(f"r.run_id IN (SELECT t.run_id FROM tags t WHERE {where})")
        values |= {f"tag{number}": tag, f"tag_value{number}": value}
    if beyond is not None:
        than = "<" if newest else ">"
        parts.append(f"(r.created, r.run_id) {than} (SELECT created, run_id FROM runs WHERE run_id = :beyond)")
        values["beyond"] = beyond
    order = "r.created DESC, r.run_id DESC" if newest else "r.created, r.run_id"
    query = HEAD + f"WHERE {' AND '.join(parts)} ORDER BY {order}"
    if limit is not None:
        query += " LIMIT :limit"
        values["limit"] = limit
    return query, values


STATES = f"SELECT state, count(*) FROM runs WHERE state NOT IN {_NO_RUNS} GROUP BY state"
