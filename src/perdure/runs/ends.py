"""How runs end: as their program or their machine has it, as somebody outside wants it; or not yet: another attempt."""

from __future__ import annotations

from typing import Any

import msgspec

from perdure.context.log import NewEntry
from perdure.model import RunState
from perdure.runs import retries
from perdure.runs.record import Ending
from perdure.runs.run import WARM, Run


async def end(run: Run, to: RunState, error: dict[str, Any], clean_up_s: float) -> bool:
    """Have it end in ``to``: its program has ``clean_up_s`` to clean up, where it can hear of it. Conflict when it
    has ended; nothing when it is to end already, unless at once (0 s). Whether its program is still to be told."""

    async def act() -> bool:
        run.check_going()
        record = run.record
        hears = record.sandbox_id and (record.source is not None or run.state in WARM)
        if not hears or clean_up_s <= 0:
            # the state is one of the three that end a run
            ending = record.ending or Ending(to=to.value, error=error, until=0.0)  # type: ignore[arg-type]
            # kept where it ends at once: its children have no more time than it has
            kept = msgspec.structs.replace(ending, until=0.0) if clean_up_s <= 0 else None
            await conclude(run, RunState(ending.to), epoch=record.epoch + 1, error=ending.error, ending=kept)
            return False
        if record.ending is None:
            await _begin_end(run, to, error, run.clock.time() + clean_up_s)
            return record.source is not None and not record.waits.open
        return False

    return await run.atomically(act)


async def _begin_end(run: Run, to: RunState, error: dict[str, Any], until: float) -> None:
    waits, now = run.record.waits.whole, run.clock.time()
    entries = [NewEntry(kind="ending", payload={"to": to.value, "error": error, "until": until})]
    for wait in waits:
        over = {"wait": wait.id, "kind": wait.kind, "outcome": "cancelled", "at": now}
        entries.append(NewEntry(kind="wait.completed", key=wait.key, payload=over))
    # the state is one of the three that end a run
    ending = Ending(to=to.value, error=error, until=until, told=bool(waits))  # type: ignore[arg-type]
    if waits and run.state is RunState.WAITING:
        await run.write(*entries, to=RunState.RUNNING, why={"wait": waits[-1].id}, ending=ending)
    else:
        asleep = run.state in (RunState.SUSPENDING, RunState.SUSPENDED)
        await run.write(*entries, wake=run.record.wake or asleep, ending=ending)
    run.owe(wait.id for wait in waits)


async def conclude(
    run: Run,
    to: RunState,
    *,
    epoch: int,
    error: dict[str, Any] | None = None,
    result: Any = None,
    kind: str = "",
    ending: Ending | None = None,
) -> None:
    """It ends: as its program or its machine has it, or as it was to end anyhow; or its next attempt begins, where
    its failure (of this ``kind`` of ``model.FAILURES``) is one to try again after. Under the lock.

    epoch: a new one where something of its machine may be left: the fence, it can do nothing any more. ending: how it
    is to end, where that is not what the record has.
    """
    record, ending = run.record, ending or run.record.ending
    if ending is not None:
        to, error, result, kind = RunState(ending.to), ending.error, None, ending.error["code"]
    if to is RunState.FAILED and error is not None:
        code = str(error.get("code"))
        pause_s = retries.pause_s(record.request.retry, kind, code, run.id, record.attempt)
        if pause_s is not None:
            await _retry(run, retries.told(kind, record.attempt + 1, error), pause_s)
            return
    why: dict[str, Any] = {"result": result} if to is RunState.COMPLETED else {"error": error}
    if to is RunState.CANCELLED:
        why["reason"] = (error or {}).get("message", "")
    await run.write(to=to, epoch=epoch, why=why, result=result, error=error, ending=ending)


async def _retry(run: Run, why: dict[str, Any], pause_s: float) -> None:
    """Begin another attempt, from the start. Under the lock."""
    record, after = run.record, 0
    carried = retries.Carried(
        whole_lanes=record.request.on_divergence == "fail" or record.request.is_replay,
        by_name=record.request.is_replay,
    )
    while page := await run.context.read(run.id, branch=run.branch, after=after):
        for entry in page:
            if record.counts(entry.key, entry.seq):
                carried.feed(entry)
        after = page[-1].seq
    at, epoch = run.clock.time() + pause_s, record.epoch + 1
    fork = carried.fork(at)
    await run.write(
        *(fork[2] if fork else ()),
        to=RunState.RECOVERING,
        epoch=epoch,
        why={**why, "epoch": epoch, "at": at},
        fork=(run.branch, fork[0]) if fork else None,
        waits=fork[1] if fork else None,
        attempt=record.attempt + 1,
        retry_at=at,
        began=at,
        active_s=0.0,
        active_since=0.0,
        ending=None,
        sandbox_id="",
        snapshot=None,
        snapshots=[],
        thinking=[],
        wake=False,
        failure="",
        failures=0,
        lost_epochs=[*record.lost_epochs, record.epoch],
    )
