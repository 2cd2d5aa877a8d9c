"""Two runs, or two branches of one, side by side: where their logs part, and what differs in their files."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from perdure.context.log import ContextLog, Stretch
from perdure.errors import InvalidValue, NotFound
from perdure.model import FileChange, Frozen, NodePlace
from perdure.runs.record import Record, from_head

FOLDER, DELETED = "folder", "D"


class Side(Frozen, frozen=True, kw_only=True):
    """One of the two: a branch of a run."""

    run_id: str
    branch: int
    seq: int


async def side(context: ContextLog, run_id: str, branch: str) -> Side:
    """``branch``: of the run; empty: its current one. NotFound."""
    if branch and not branch.isdecimal():
        raise InvalidValue(f"not the number of a branch: {branch!r}", hint="Write RUN, or RUN:BRANCH (`perdure tree`).")
    way = await context.lineage(run_id, int(branch) if branch else None)
    return Side(run_id=run_id, branch=way[0].branch, seq=way[0].upto)


async def parting(context: ContextLog, a: Side, b: Side) -> dict[str, Any] | None:
    """The last entry that both have; None: they have nothing in common."""
    ways = [await context.lineage(one.run_id, one.branch) for one in (a, b)]
    shared = [min(one, other, key=lambda part: part.upto) for one in ways[0] for other in ways[1] if _same(one, other)]
    if not shared:
        return None
    last = max(shared, key=lambda part: part.upto)
    return {"run_id": last.run_id, "branch": last.branch, "seq": last.upto}


def _same(one: Stretch, other: Stretch) -> bool:
    return (one.run_id, one.branch) == (other.run_id, other.branch)


async def files(
    context: ContextLog, changes: Callable[[str], Awaitable[list[FileChange]]], a: str, b: str
) -> list[dict[str, Any]]:
    """What differs in the files of the runs' sandboxes, by path; ``changes``: of one, by its run. NotFound: one of them
    has none (any more), or at another node."""
    records = [from_head(await context.head(run_id)) for run_id in (a, b)]
    if records[0].request.image != records[1].request.image:
        raise InvalidValue(f"the runs {a} and {b} are of different images", hint="Only files over one image compare.")
    return compared(*[await changes(run_id) for run_id in (a, b)])


def sandbox_of(record: Record, run_id: str, here: NodePlace | None) -> str:
    """At the node ``here``. Raises NotFound with a reason."""
    if not record.sandbox_id or record.released:
        hint = "A run has its files while it has a sandbox: until its end. Fork it at an earlier entry to see them."
        raise NotFound(f"run {run_id} is {record.state}: its files are gone", hint=hint)
    if here is not None and record.node is not None and record.node.id != here.id:
        hint = f"It was lost there, and goes on at {here.said} when it is woken. Or `perdure fork {run_id}`."
        raise NotFound(f"the files of run {run_id} are at {record.node.said}", hint=hint)
    return record.sandbox_id


def compared(a: list[FileChange], b: list[FileChange]) -> list[dict[str, Any]]:
    """From ``a`` to ``b``; both are what differs from one image. ``same``: what both did alike."""
    ours, theirs = ({one.path: one for one in side} for side in (a, b))
    found = []
    for path in sorted(ours.keys() | theirs.keys()):
        one, other = ours.get(path), theirs.get(path)
        if what := _difference(one, other):
            sizes = [None if side is None or side.kind == DELETED else side.size_bytes for side in (one, other)]
            found.append({"path": path, "change": what, "a_bytes": sizes[0], "b_bytes": sizes[1]})
    return found


def _difference(one: FileChange | None, other: FileChange | None) -> str:
    """Nothing for a folder that only has another time or owner: what is in it is told."""
    if one is not None and other is not None and (one.kind == DELETED) == (other.kind == DELETED):
        if one.kind == DELETED or one.type == other.type == FOLDER:
            return ""
        alike = (one.type, one.digest, one.mode) == (other.type, other.digest, other.mode)
        return "same" if alike else "changed"
    before, after = _is_there(one, other), _is_there(other, one)
    if before and after:
        is_folder = FOLDER in {side.type for side in (one, other) if side is not None}
        return "" if is_folder else "changed"
    return "added" if after else "removed"


def _is_there(one: FileChange | None, other: FileChange | None) -> bool:
    """Where a side did nothing, it has what the image has: the other one's C or D says that this is something."""
    if one is not None:
        return one.kind != DELETED
    return other is not None and other.kind != "A"
