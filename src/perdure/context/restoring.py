"""Whether an exported log is that of a run which was pruned here. Its branches are still known, each with the hash of
its last entry: where that is the exported log's, by the chain all entries before are.

Entries that were written after it was pruned (its tags were changed) are here, and go on from what comes back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from perdure.context import queries
from perdure.context.log import Branch, Stretch
from perdure.context.moving import ANOTHER, Ends, Tips
from perdure.errors import Conflict
from perdure.formats import logfile
from perdure.formats.chain import entry_hash, root_hash
from perdure.formats.logfile import Beginning, Row

if TYPE_CHECKING:
    from perdure.context.stored import StoredLog


async def ends(log: StoredLog, beginning: Beginning) -> Ends:
    """Up to where each branch comes from the exported log: what is behind that is here and stays, whatever becomes of
    the rest. Conflict: the run had other branches, or wrote more before it was pruned."""
    run_id, own = beginning.run_id, _own(beginning)
    branches = {one.branch: one for one in await log.branches(run_id)}
    tips: dict[int, bytes] = dict(await log.rows(queries.TIP_HASHES, {"run_id": run_id}))
    found = Ends()
    if own.keys() != branches.keys():
        message = f"run {run_id} had {len(branches)} branches when it was pruned, the exported log has {len(own)}"
        raise Conflict(message, hint=ANOTHER)
    for branch, theirs in own.items():
        here = branches[branch]
        if (here.parent, here.fork_seq) != (theirs.parent, theirs.fork_seq):
            raise Conflict(f"run {run_id} had another branch {branch} than the exported log has", hint=ANOTHER)
        found[branch] = await _pruned_upto(log, run_id, here, tips[branch])
        if found[branch] > theirs.upto:
            message = f"the exported log of run {run_id} ends at entry {theirs.upto} of branch {branch}"
            raise Conflict(f"{message}, and what was pruned at entry {found[branch]}", hint=ANOTHER)
    return found


async def _pruned_upto(log: StoredLog, run_id: str, here: Branch, tip: bytes) -> int:
    """The last entry that the branch does not have any more. What an interrupted import has left does not count: only
    what goes on to its end, by the chain."""
    begins, last, after = here.seq + 1, b"", here.fork_seq
    while page := await _page(log, run_id, here.branch, after, here.seq):
        for row in page:
            if row[2] != after + 1 or not last or entry_hash(last, row[:8]) != row[8]:
                begins = row[2]
            after, last = row[2], row[8]
    return begins - 1 if last == tip else here.seq


async def tips(log: StoredLog, beginning: Beginning, found: Tips) -> Tips:
    """The hash at the end of each branch, with what was written to it since it was pruned. found: at the end of what
    the exported log has of it."""
    run_id, own, whole = beginning.run_id, _own(beginning), Tips()
    for here in await log.branches(run_id):
        last = found.get((run_id, here.branch)) or root_hash(run_id)
        after = own[here.branch].upto
        while page := await _page(log, run_id, here.branch, after, here.seq):
            for row in page:
                after, last = row[2], entry_hash(last, row[:8])
        whole[run_id, here.branch] = last
    return whole


def _own(beginning: Beginning) -> dict[int, logfile.Stretch]:
    return {one.branch: one for one in beginning.stretches if one.run_id == beginning.run_id}


async def _page(log: StoredLog, run_id: str, branch: int, after: int, upto: int) -> list[Row]:
    return await log.own(Stretch(run_id=run_id, branch=branch, fork_seq=after, upto=upto), after)
