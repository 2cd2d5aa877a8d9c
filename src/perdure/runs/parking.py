"""The program's side of waits: a call that is answered when what it waits for has come."""

from __future__ import annotations

import msgspec

from perdure.context.log import NewEntry
from perdure.errors import Unavailable
from perdure.model import Entry, RunState, new_id
from perdure.runs.asked import Asked, Body, last
from perdure.runs.asking import Asking
from perdure.runs.ending import told
from perdure.runs.run import WARM, taking
from perdure.runs.waits import Wait


async def wait(asked: Asked) -> Body:
    """The answer, once the wait is completed; at once where the log has it."""
    asking = asked.convert(Asking)
    asking.check()
    while True:
        found = await asked.warm(lambda: _begin(asked, asking))
        if isinstance(found, Entry):
            asked.run.told(found.payload["wait"])
            if found.payload["outcome"] == "cancelled":
                raise told(asked)
            return _answer(asking.kind, found.payload)
        await park(asked, found)


async def _begin(asked: Asked, asking: Asking) -> Entry | Wait:
    """The entry that completed this wait, or the wait, open."""
    done = last(await asked.known(), "wait.completed")
    if done:
        return done
    run, known = asked.run, await opened(asked)
    if known is not None:
        return known
    wait = asking.wait(asked.key, asked.run.clock.time())
    signal = run.record.waits.kept(asking.name) if asking.kind == "signal" else None
    if signal is None:
        return await open_wait(asked, wait)
    outcome = {"wait": wait.id, "kind": "signal", **taking(signal)}
    completed = NewEntry(kind="wait.completed", key=asked.key, payload=outcome)
    return (await asked.note(_started(asked, wait), completed))[-1]


async def opened(asked: Asked) -> Wait | None:
    """The open wait of this call, which the run is parked on (again, after a recovery). Under the run's lock."""
    run = asked.run
    wait = next((wait for wait in run.record.waits.open if wait.key == asked.key), None)
    if wait is not None and run.state is RunState.RUNNING:
        await run.write(to=RunState.WAITING, epoch=asked.call.epoch, why={"wait": wait.id})
    return wait


async def withdraw(asked: Asked) -> Body:
    """The program does not wait any more (its task was cancelled). Nothing, when what it waited for came first."""

    async def act() -> Body:
        run = asked.run
        wait = next((wait for wait in run.record.waits.open if wait.key == asked.key), None)
        if wait is not None:
            await run.complete_wait(wait, {"outcome": "withdrawn", "at": asked.run.clock.time()})
            run.told(wait.id)
        elif not await asked.entries():  # it overtook its wait, which then finds this
            payload = {"wait": new_id(), "kind": "", "outcome": "withdrawn", "at": asked.run.clock.time()}
            await asked.note(NewEntry(kind="wait.completed", key=asked.key, payload=payload))
        return {}

    return await asked.warm(act)


async def open_wait(asked: Asked, wait: Wait) -> Wait:
    """Record the wait and that the run is parked on it. Under the run's lock."""
    run = asked.run
    wait = msgspec.structs.replace(wait, since=asked.run.clock.time())
    to = RunState.WAITING if run.state is RunState.RUNNING else None
    await run.write(_started(asked, wait), to=to, epoch=asked.call.epoch, why={"wait": wait.id})
    run.progressed = True
    return wait


async def park(asked: Asked, wait: Wait) -> None:
    """Until the wait is not open any more, or the machine was captured (Unavailable: it asks again)."""
    run, epoch = asked.run, asked.call.epoch

    def over() -> bool:
        if run.ended or run.record.epoch != epoch or run.state is RunState.SUSPENDED:
            return True
        return run.record.waits.find(wait.id) is None and run.state in WARM

    with run.asking(wait.id):
        await run.until(over)
    if run.record.epoch != epoch and not run.ended:
        raise Unavailable(f"run {run.id} went on in another epoch")


def _started(asked: Asked, wait: Wait) -> NewEntry:
    payload = {"wait": msgspec.to_builtins(wait), "request": asked.request}
    return NewEntry(kind="wait.started", key=asked.key, payload=payload)


def _answer(kind: str, done: Body) -> Body:
    timed_out = done["outcome"] == "timed-out"
    if done["outcome"] == "withdrawn":
        return {"kind": kind, "withdrawn": True}
    if kind == "time":
        return {"kind": kind}
    if kind == "signal":
        return {"kind": kind, "value": done.get("value"), "timed_out": timed_out}
    verdict = done.get("value") or {"approved": False, "comment": "", "values": {}}
    return {"kind": kind, **verdict, "by": done.get("by", ""), "at": done.get("at", 0.0), "timed_out": timed_out}
