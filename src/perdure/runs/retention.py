"""How long logs are kept, and what of another home is taken in.

The log of a run may go once the run has ended and its sandbox was removed, its snapshots with it: nothing that can be
restored is bound to a position of it. What forks share stays.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import msgspec

from perdure.context.leases import Leases
from perdure.context.log import ContextLog, Head
from perdure.errors import Conflict, InvalidValue, NotFound, PerdureError, ProtocolError
from perdure.runs import forkkeys
from perdure.runs.clock import Clock
from perdure.runs.record import Record, from_head
from perdure.runs.states import TERMINAL

PAGE = 500
PORTION = 20  # runs that are looked at without a pause
PAUSE_S = 0.5
LOOK_S = 3600.0  # from one look at all runs to the next
SWEEP_S = 86400.0
KIND, SWEEP = "retention", "sweep"  # of what is kept: when one of the servers that share a database swept

log = logging.getLogger(__name__)


class Retention:
    """Drops by itself the logs of runs that ended more than ``keep_s`` ago: a few, a pause, and so on, so that whoever
    writes meanwhile waits for little. Then, once a day at most, the large values that nothing refers to any more."""

    def __init__(self, context: ContextLog, clock: Clock, keep_s: float) -> None:
        self.keep_s = keep_s
        self._context = context
        self._clock = clock
        self._is_sweep_due = False
        self._swept_at: float | None = None  # monotonic

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                await self._look()
            except (PerdureError, OSError) as error:  # the database is away, or the disk full: the next look finds it
                log.warning("logs that are old enough are not dropped now: %s", error)
            await self._pause(LOOK_S)

    async def _look(self) -> None:
        """At all runs, the oldest first."""
        beyond: str | None = None
        before = self._clock.time() - self.keep_s
        while heads := await self._context.heads(released=True, pruned=False, beyond=beyond, limit=PORTION):
            beyond = heads[-1].run_id
            if heads[0].created >= before:
                break  # and so are all after it
            dropped = [head.run_id for head in heads if await _drop(self._context, head, before)]
            if dropped:
                log.info("dropped the logs of %d runs that ended %g days ago", len(dropped), self.keep_s / 86400)
                self._is_sweep_due = True
            await self._pause(PAUSE_S)
        await self._sweep()

    async def _sweep(self) -> None:
        leases, now = self._context.leases, self._clock.monotonic()
        if leases is not None:  # what other servers drop is dropped unseen: one sweep a day is for all of it
            if await self._is_first(leases):
                await self._context.sweep()
        elif self._is_sweep_due and (self._swept_at is None or now >= self._swept_at + SWEEP_S):
            self._swept_at = now
            self._is_sweep_due = (await self._context.sweep()).next_blobs > 0

    async def _is_first(self, leases: Leases) -> bool:
        """Whether a sweep is due, and this server the first to see it; by the clock of the database, and whoever comes
        and goes in between: between two sweeps there is to be time."""
        found, now = await self._context.kept(KIND, SWEEP), await leases.time()
        if found and now < found[0].value["at"] + SWEEP_S:
            return False
        try:
            await self._context.keep(KIND, SWEEP, {"at": now}, expected_version=found[0].version if found else 0)
        except (Conflict, NotFound):
            return False
        return True

    async def _pause(self, seconds: float) -> None:
        await self._clock.sleep_until(self._clock.monotonic() + seconds)


async def _drop(context: ContextLog, head: Head, before: float, *, dry_run: bool = False) -> bool:
    """Drop the log of a run if it ended before; False also where something needs it still."""
    if head.pruned or head.created >= before:
        return False
    try:
        if await _ended(context, head) >= before:
            return False
        if not dry_run:
            await prune(context, head.run_id)
    except Conflict:
        return False  # its forks are younger
    except NotFound:
        return False  # another server was faster
    return True


async def prune(context: ContextLog, run_id: str) -> None:
    """Drop the log of one run. Conflict: it goes on, or is still needed."""
    head = await context.head(run_id)
    _check(head)
    await context.prune(run_id, expected_version=head.version, kind=forkkeys.kind(run_id))


async def prune_older(context: ContextLog, before: float, *, dry_run: bool) -> list[str]:
    """Those of all runs that ended before a moment (seconds since 1970), but for what forks share. The runs' ids."""
    pruned: list[str] = []
    beyond: str | None = None
    while heads := await context.heads(released=True, pruned=False, beyond=beyond, limit=PAGE):
        beyond = heads[-1].run_id
        pruned += [head.run_id for head in heads if await _drop(context, head, before, dry_run=dry_run)]
    return pruned


async def _ended(context: ContextLog, head: Head) -> float:
    """When it did; of one of another home when it was taken up here, as somebody wants to read it."""
    last = await context.read(head.run_id, after=head.seq - 1, limit=1, expand=False)
    return max(last[0].time if last else head.created, from_head(head).taken_up)


def _check(head: Head) -> None:
    record = from_head(head)
    hint = f"`perdure show {head.run_id}` says what it does."
    if record.state not in TERMINAL:
        raise Conflict(f"run {head.run_id} has not ended: it is {record.state}", hint=hint, state=record.state)
    if not record.released:
        raise Conflict(f"the sandbox of run {head.run_id} is not removed yet, and may be restored", hint=hint)
    if head.pruned:
        raise Conflict(f"the log of run {head.run_id} was pruned already")


def taken_up(value: Any) -> Any:
    """The summary of a run of another home, as this one keeps it: only its log is here. Conflict: it had not ended."""
    try:
        record = msgspec.convert(value, Record)
    except msgspec.ValidationError as error:
        raise ProtocolError(f"the summary of the exported run is not one: {error}") from error
    if record.state not in TERMINAL:
        hint = "Two homes cannot go on with one run: cancel it there, or let it end, and export it again."
        raise Conflict(f"the run had not ended when it was exported: it was {record.state}", hint=hint)
    return {**value, "released": True, "taken_up": time.time()}


def moment(older_than_s: float, now: float) -> float:
    """InvalidValue: not a time that was."""
    if not 0 <= older_than_s <= now:
        raise InvalidValue(f"older_than_s is {older_than_s:g}", hint="It is a number of seconds from 0 on.")
    return now - older_than_s
