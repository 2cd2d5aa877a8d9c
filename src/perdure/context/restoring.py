"""Whether an exported log is that of a run which was pruned here. Its branches are still known, each with the hash of
its last entry: where that is the exported log's, by the chain all entries before are.

Entries that were written after it was pruned (its tags were changed) are here, and go on from what comes back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from perdure.context.log import Stretch
from perdure.context.moving import ANOTHER, Ends, Tips
from perdure.errors import Conflict
from perdure.formats import logfile
from perdure.formats.chain import entry_hash, root_hash
from perdure.formats.logfile import Beginning, Row

if TYPE_CHECKING:
    from perdure.context.stored import StoredLog


async def ends(log: StoredLog, beginning: Beginning) -> Ends:
    """Where the branches end in the exported log. Conflict: the run had others, or wrote more before it was pruned."""
    run_id, own = beginning.run_id, _own(beginning)
    branches = {one.branch: one for one in await log.branches(run_id)}
    if own.keys() != branches.keys():
        message = f"run {run_id} had {len(branches)} branches when it was pruned, the exported log has {len(own)}"
        raise Conflict(message, hint=ANOTHER)
    for branch, theirs in own.items():
        here = branches[branch]
        if (here.parent, here.fork_seq) != (theirs.parent, theirs.fork_seq):
            raise Conflict(f"run {run_id} had another branch {branch} than the exported log has", hint=ANOTHER)
        later = await _page(log, run_id, branch, theirs.upto, here.seq)
        begins = later[0][2] if later else here.seq + 1
        if begins != theirs.upto + 1:
            message = f"the exported log of run {run_id} ends at entry {theirs.upto} of branch {branch}"
            raise Conflict(f"{message}, and what was pruned at entry {begins - 1}", hint=ANOTHER)
    return {branch: theirs.upto for branch, theirs in own.items()}


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
