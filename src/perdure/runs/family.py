"""How runs descend from each other: a run with its branches, forks and children, and theirs."""

from __future__ import annotations

from typing import Any

from perdure.context.log import ContextLog, Head
from perdure.runs.record import Record, from_head

AT_ONCE = 500  # runs whose children and forks one query asks for
Tree = dict[str, Any]  # docs/time-travel.md has its fields


async def trees(context: ContextLog, run_id: str | None = None) -> list[Tree]:
    """The run with all that descend from it; without one every run that descends from none, oldest first."""
    found = await context.heads() if run_id is None else await _family(context, run_id)
    heads = {head.run_id: head for head in found}
    records = {name: from_head(head) for name, head in heads.items()}
    forks, children = dict[str, list[str]](), dict[str, list[str]]()
    for name, record in records.items():
        if record.origin is not None and record.origin.run_id in heads:
            forks.setdefault(record.origin.run_id, []).append(name)
        elif record.parent in heads:
            children.setdefault(record.parent, []).append(name)
    below = {name for named in (forks, children) for names in named.values() for name in names}
    roots = [name for name in heads if name not in below] if run_id is None else [run_id]
    made: dict[str, Tree] = {}
    # no recursion: forks of forks may be many
    waiting, order = list(roots), list[str]()
    while waiting:
        name = waiting.pop()
        order.append(name)
        waiting += forks.get(name, []) + children.get(name, [])
    for name in reversed(order):
        made[name] = await _tree(context, heads[name], records[name])
        made[name]["forks"] = [made[fork] for fork in forks.get(name, [])]
        made[name]["children"] = [made[child] for child in children.get(name, [])]
    return [made[name] for name in roots]


async def _family(context: ContextLog, run_id: str) -> list[Head]:
    """A run with all that descend from it, oldest first: no others are read."""
    found, level = {run_id: await context.head(run_id)}, [run_id]
    while level:
        below = []
        for first in range(0, len(level), AT_ONCE):
            below += await context.heads(below=level[first : first + AT_ONCE])
        level = [head.run_id for head in below if head.run_id not in found]
        found |= {head.run_id: head for head in below}
    return sorted(found.values(), key=lambda head: (head.created, head.run_id))


async def _tree(context: ContextLog, head: Head, record: Record) -> Tree:
    info = record.info(head, [])
    return {
        "id": head.run_id,
        "name": info.name,
        "state": str(info.state),
        "agent": info.agent,
        "created": head.created,
        "seq": head.seq,
        "waits": [wait["name"] or wait["kind"] for wait in info.waits],
        "origin": None if info.origin is None else {"branch": info.origin.branch, "seq": info.origin.seq},
        "branches": await _branches(context, head),
    }


async def _branches(context: ContextLog, head: Head) -> list[dict[str, Any]]:
    found, branches = [], await context.branches(head.run_id)
    for one in branches:
        why = ""
        if len(branches) > 1 and one.fork_seq and not head.pruned:
            first = await context.read(head.run_id, branch=one.branch, after=one.fork_seq, limit=1, expand=False)
            why = "" if first[0].payload.get("carried") else first[0].kind
        is_current = one.branch == head.branch
        shown = {"branch": one.branch, "parent": one.parent, "fork_seq": one.fork_seq, "seq": one.seq}
        found.append({**shown, "why": why, "current": is_current})
    return found
