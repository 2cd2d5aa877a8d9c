"""Checkpoints that somebody wishes for: a person by the API, or the program by a call."""

from __future__ import annotations

import msgspec

from perdure.context.log import NewEntry
from perdure.errors import Conflict, Unsupported, from_json
from perdure.model import Frozen, RunState, SnapshotInfo
from perdure.runs.asked import Asked, Body
from perdure.runs.run import Run
from perdure.runs.wishes import Wish

WAIT_S = 120.0  # for the end of a step or of a model's answer, and for the capture itself


class Checkpoint(Frozen, frozen=True, kw_only=True):
    """Body of ``/perdure/v1/checkpoint``, and of the API's."""

    keep: bool = False


async def of_person(run: Run, *, keep: bool) -> SnapshotInfo:
    """The snapshot of a run that goes on, taken now; of one that sleeps the one that it sleeps in. Conflict."""
    wish = Wish(keep=keep)
    if run.record.request.is_replay:
        message = f"run {run.id} is on the replay road: it has no machine to capture"
        raise Unsupported(message, hint="It goes on from its log, which is complete at any moment.")

    async def act() -> SnapshotInfo | None:
        record = run.record
        if run.state is not RunState.SUSPENDED or record.snapshot is None:
            run.wishes.append(wish)
            run.notify()
            return None
        if keep:
            newest = msgspec.structs.replace(record.restorable[-1], keep=True)
            await run.write(snapshots=[*record.restorable[:-1], newest])
        return record.snapshot

    found = await run.atomically(act)
    if found is not None:
        return found
    await run.until(lambda: wish.is_over or run.ended or run.state is RunState.SUSPENDED, WAIT_S)
    if wish.is_over:
        return wish.result()
    if wish in run.wishes:
        run.wishes.remove(wish)
    if run.state is RunState.SUSPENDED:
        return await of_person(run, keep=keep)
    hint = "A step that was begun, or a model's answer on its way, puts a checkpoint off; try again."
    raise Conflict(f"run {run.id} is {run.state}: no checkpoint was possible", hint=hint, state=run.state)


async def of_program(asked: Asked) -> Body:
    """``/perdure/v1/checkpoint``: the answer comes once the snapshot is durable; after a restore at once."""
    wanted, run = asked.convert(Checkpoint), asked.run

    async def act() -> Body | Wish:
        known = await asked.known()
        if known:
            return dict(known[-1].payload)
        if run.record.request.is_replay:  # its log is all that there is to keep, and it is kept
            tip = await run.context.head(run.id)
            told = {"checkpoint": "", "seq": tip.seq, "request": asked.request}
            return dict((await asked.note(NewEntry(kind="note", key=asked.key, payload=told)))[0].payload)
        if run.record.steps:
            hint = "A machine that is captured within a step would have its effect again: do it between steps."
            raise Conflict("a checkpoint within a step", hint=hint)
        found = next((wish for wish in run.wishes if (wish.key, wish.request) == (asked.key, asked.request)), None)
        if found is None:
            found = Wish(keep=wanted.keep, key=asked.key, request=asked.request)
            run.wishes.append(found)
            run.notify()
        return found

    while True:
        found = await asked.warm(act)
        if isinstance(found, dict):
            if "checkpoint_failed" in found:
                raise from_json(found["checkpoint_failed"])
            return {"snapshot": found["checkpoint"], "seq": found["seq"]}
        # mypy gives a lambda whose parameters have defaults no type
        await run.until(lambda wish=found: wish.is_over or asked.is_over())  # type: ignore[misc]
