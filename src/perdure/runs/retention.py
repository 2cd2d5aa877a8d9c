"""How long logs are kept, and what of another home is taken in.

The log of a run may go once the run has ended and its sandbox was removed, its snapshots with it: nothing that can be
restored is bound to a position of it. What forks share stays.
"""

from __future__ import annotations

from typing import Any

import msgspec

from perdure.context.log import ContextLog, Head
from perdure.errors import Conflict, InvalidValue, ProtocolError
from perdure.runs.record import Record, from_head
from perdure.runs.states import TERMINAL

PAGE = 500


async def prune(context: ContextLog, run_id: str) -> None:
    """Drop the log of one run. Conflict: it goes on, or is still needed."""
    head = await context.head(run_id)
    _check(head)
    await context.prune(run_id, expected_version=head.version)


async def prune_older(context: ContextLog, before: float, *, dry_run: bool) -> list[str]:
    """Those of all runs that ended before a moment (seconds since 1970), but for what forks share. The runs' ids."""
    pruned: list[str] = []
    beyond: str | None = None
    while heads := await context.heads(released=True, beyond=beyond, limit=PAGE):
        beyond = heads[-1].run_id
        for head in heads:
            if head.pruned or head.created >= before or await _ended(context, head) >= before:
                continue
            try:
                if not dry_run:
                    await prune(context, head.run_id)
            except Conflict:
                continue  # its forks are younger
            pruned.append(head.run_id)
    return pruned


async def _ended(context: ContextLog, head: Head) -> float:
    last = await context.read(head.run_id, after=head.seq - 1, limit=1, expand=False)
    return last[0].time if last else head.created


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
    return {**value, "released": True}


def moment(older_than_s: float, now: float) -> float:
    """InvalidValue: not a time that was."""
    if not 0 <= older_than_s <= now:
        raise InvalidValue(f"older_than_s is {older_than_s:g}", hint="It is a number of seconds from 0 on.")
    return now - older_than_s
