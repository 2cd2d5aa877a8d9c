"""Back in time: what a run was at an entry of its log, and which snapshot is nearest below it.

A fork is another run that goes on from there, a rewind the same one on a new branch. Both are a recovery to an older
moment: the nearest snapshot at or below it, then the tail replay; without one from the start.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from perdure.context.log import ContextLog, Head, NewEntry, Stretch
from perdure.context.rows import was_pruned
from perdure.errors import Conflict, InvalidValue
from perdure.model import Frozen, RunOrigin, RunState
from perdure.runs.record import Kept, Record, from_head
from perdure.runs.run import Run
from perdure.runs.states import REWINDS, TERMINAL
from perdure.runs.waits import FOLDED, Waits

ENDS = frozenset(f"run.{state}" for state in TERMINAL)
LAST = 100  # entries: a provider's answers that were still on their way may come after the one that ends a run


class Moment(Frozen, frozen=True, kw_only=True):
    """A run right after one entry of a branch."""

    branch: int
    seq: int
    epoch: int
    time: float
    waits: Waits

    def shift_s(self, now: float) -> float:
        """How long ago it was: for so long time stood still for whatever is open in it."""
        return max(0.0, now - self.time)


async def moment(context: ContextLog, run_id: str, branch: int, seq: int) -> Moment:
    """InvalidValue: the branch has no such entry, or it is one that ended the run."""
    found = await context.read(run_id, branch=branch, after=max(seq, 1) - 1, limit=1, expand=False)
    if seq < 1 or not found:
        if (await context.head(run_id)).pruned:
            raise was_pruned(run_id)
        tip = (await context.lineage(run_id, branch))[0].upto
        raise InvalidValue(f"run {run_id} has no entry {seq}: it has 1 to {tip}", hint=f"See `perdure log {run_id}`.")
    if found[0].kind in ENDS:
        hint = f"Go back to entry {seq - 1}, or an earlier one."
        raise InvalidValue(f"entry {seq} of run {run_id} ended it: nothing goes on from there", hint=hint)
    waits = await waits_at(context, run_id, branch, seq)
    return Moment(branch=branch, seq=seq, epoch=found[0].epoch, time=found[0].time, waits=waits)


async def waits_at(context: ContextLog, run_id: str, branch: int, seq: int) -> Waits:
    """What a run was parked on right after an entry. A conversation's turns, which are long, are not read for it."""
    entries = []
    for kind in FOLDED:
        after = 0
        while page := await context.read(run_id, branch=branch, after=after, kind=kind):
            entries += [entry for entry in page if entry.seq <= seq]
            after = page[-1].seq
            if after >= seq:
                break
    waits = Waits()
    for entry in sorted(entries, key=lambda entry: entry.seq):
        waits = waits.after(entry.kind, entry.payload)
    return waits


async def newest(context: ContextLog, head: Head) -> int:
    """The last entry that a run can go on from: its last one, or the one before its end."""
    if from_head(head).state not in TERMINAL:
        return head.seq
    last = await context.read(head.run_id, branch=head.branch, after=max(0, head.seq - LAST), expand=False)
    return next((entry.seq - 1 for entry in last if entry.kind in ENDS), head.seq)


def is_on(way: Sequence[Stretch], run_id: str, snapshot: Kept) -> bool:
    """Whether the position of a snapshot of a run's lies on the way of a branch."""
    if snapshot.branch == 0:
        return True  # of a server that wrote no positions down
    at = snapshot.run or run_id, snapshot.branch
    return any(at == (part.run_id, part.branch) and snapshot.seq <= part.upto for part in way)


async def snapshots(run: Run) -> list[Kept]:
    """Those that lie on the way to the tip of a run, and that its sandbox or one of the runs above it still has: newest
    first."""
    way = await run.context.lineage(run.id, run.branch)
    found: dict[str, Kept] = {}
    for owner in dict.fromkeys(part.run_id for part in way):
        record = from_head(await run.context.head(owner))
        kept = () if record.released else record.restorable
        for one in kept:
            if is_on(way, owner, one):
                found[one.digest] = msgspec.structs.replace(one, run=one.run or owner, keep=False)
    return sorted(found.values(), key=lambda one: one.seq, reverse=True)


def forked(parent: Record, origin: RunOrigin, at: Moment, name: str, now: float) -> tuple[Record, list[NewEntry]]:
    """A run that goes on from a moment of another one: what it is, and the first entries of its own."""
    request = msgspec.structs.replace(parent.request, name=name, key=None)
    payload = {"run": origin.run_id, "branch": at.branch, "at": at.seq, "shift_s": at.shift_s(now)}
    entry = NewEntry(kind="forked", payload=payload)
    queued = {"request": msgspec.to_builtins(request), "source": parent.source, "pack": parent.pack}
    record = Record(
        state=RunState.QUEUED,
        request=request,
        source=parent.source,
        pack=parent.pack,
        made_by=parent.made_by,
        calls_version=parent.calls_version,
        epoch=at.epoch,
        lost_upto=at.epoch,
        waits=at.waits.after(entry.kind, entry.payload),
        origin=origin,
        overruled=[one for one in parent.overruled if one.seq <= at.seq],
        depth=parent.depth,
        is_parent=any(wait.child for wait in at.waits.open),
        guest_key=parent.guest_key,
    )
    return record, [entry, NewEntry(kind="run.queued", payload=queued)]


def _rewind_key(key: str) -> str:
    """That of the entry of a rewind that was asked for with a key; no call has such a one."""
    return f"rewind:{key}"


async def is_rewound(context: ContextLog, run_id: str, seq: int, key: str) -> bool:
    """Whether the rewind of this key was done, on whichever branch. Conflict: that one was to another entry."""
    for branch in await context.branches(run_id):
        for entry in await context.find(run_id, branch.branch, _rewind_key(key)):
            if entry.run_id == run_id and entry.payload["at"] != seq:
                message = f"the key {key!r} is that of a rewind to entry {entry.payload['at']} of run {run_id}"
                raise Conflict(message, hint="Take another key for another rewind.")
            if entry.run_id == run_id:
                return True
    return False


async def rewind(run: Run, seq: int, key: str | None = None) -> None:
    """Take a run back to an entry of its current branch. Conflict: it has not begun."""

    async def act() -> None:
        record = run.record
        if run.state not in REWINDS:
            raise Conflict(f"run {run.id} is {run.state}: there is nothing to go back from", state=run.state)
        at = await moment(run.context, run.id, run.branch, seq)
        way = await run.context.lineage(run.id, run.branch)
        told = {
            "from_branch": run.branch,
            "from": way[0].upto,
            "at": seq,
            "state": run.state,
            "shift_s": at.shift_s(run.clock.time()),
        }
        way = [msgspec.structs.replace(part, upto=min(part.upto, seq)) for part in way]
        # those beyond are of the abandoned branch: the first that are given up
        kept = [] if record.released else sorted(record.restorable, key=lambda one: is_on(way, run.id, one))
        await run.write(
            NewEntry(kind="rewound", payload=told, key=None if key is None else _rewind_key(key)),
            to=RunState.RECOVERING,
            rewinds=True,
            fork=(run.branch, seq),
            epoch=record.epoch + 1,
            why={"cause": "rewind", "detail": f"back to entry {seq}", "epoch": record.epoch + 1},
            waits=at.waits,
            steps=[],
            snapshot=record.snapshot if kept else None,
            snapshots=kept,
            thinking=[],
            lost_upto=record.epoch,
            lost_epochs=[],
            is_alone=bool(record.parent),
            wake=False,
            released=False,
            result=None,
            error=None,
            output="",
            output_life="",
            output_end=0,
            failure="",
            failures=0,
            ending=None,
            retry_at=0.0,
            began=run.clock.time(),  # its time limits begin again
            active_s=0.0,
        )

    await run.atomically(act)
