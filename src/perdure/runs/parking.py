"""The program's side of waits: a call that is answered when what it waits for has come."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import msgspec

from perdure.context.log import NewEntry
from perdure.errors import Unavailable
from perdure.model import Entry, RunState, new_id
from perdure.runs import children, forking
from perdure.runs.asked import Asked, Body, last
from perdure.runs.asking import Asking, SetAsking
from perdure.runs.completions import completion, taking
from perdure.runs.ending import told
from perdure.runs.run import WARM
from perdure.runs.waits import SETS, Wait, Waits


async def wait(asked: Asked) -> Body:
    """The answer, once the wait is completed; at once where the log has it."""
    asking = asked.convert(Asking)
    asking.check()
    children.check(asked.run.record, asking)
    await forking.check(asked, [asking])
    wait = asking.wait(asked.key, asked.run.clock.time())
    done = await _over(asked, lambda: _begin(asked, [asking], wait, []))
    return answer(asking.kind, done.payload)


async def wait_set(asked: Asked) -> Body:
    """The answers of the waits that are over, and in which order they came, once the set is completed."""
    asking = asked.convert(SetAsking)
    asking.check()
    for one in asking.waits:
        children.check(asked.run.record, one)
    await forking.check(asked, asking.waits)
    whole, parts = asking.wait(asked.key, asked.run.clock.time())
    done = await _over(asked, lambda: _begin(asked, asking.waits, whole, parts))
    if done.payload["outcome"] == "withdrawn":
        return answer(asking.mode, done.payload)
    ended = [entry for entry in await asked.entries() if entry.kind == "wait.completed" and "of" in entry.payload]
    answers: list[Body | None] = [None] * len(asking.waits)
    for entry in ended:
        index = entry.payload["index"]
        answers[index] = answer(asking.waits[index].kind, entry.payload)
    timed_out = done.payload["outcome"] == "timed-out"
    return {"kind": asking.mode, "timed_out": timed_out, "order": done.payload["order"], "waits": answers}


async def _over(asked: Asked, begin: Callable[[], Awaitable[Entry | Wait]]) -> Entry:
    """The entry that completed what ``begin`` opens, or finds open or completed."""
    while True:
        found = await asked.warm(begin)
        if isinstance(found, Entry):
            asked.run.told(found.payload["wait"])
            if found.payload["outcome"] == "cancelled":
                raise told(asked)
            return found
        await park(asked, found)


async def _begin(asked: Asked, askings: list[Asking], wait: Wait, parts: list[Wait]) -> Entry | Wait:
    """The entry that completed this wait, or the wait, open. Under the run's lock."""
    done = _whole(await asked.known())
    if done:
        return done
    known = await opened(asked)
    if known is not None:
        return known
    pairs = zip(askings, parts or [wait], strict=True)
    starts = {one.id: asking.start() for asking, one in pairs if one.child}
    kept, over = _taken(asked.run.record.waits, wait, parts)
    if not over:
        return await open_wait(asked, wait, parts, kept, starts)
    written = await asked.note(_started(asked, wait, parts, starts), *kept)
    return written[-1]


def _taken(waits: Waits, wait: Wait, parts: list[Wait]) -> tuple[list[NewEntry], bool]:
    """The entries of what signals that were kept complete at once, and whether the wait is over by them."""
    entries: list[NewEntry] = []
    taken: set[str] = set()
    after = waits.after("wait.started", _payload(wait, parts))
    for one in [part for part in parts or [wait] if part.kind == "signal"]:
        signal = waits.kept(one.name, taken)
        if signal is None:
            continue
        taken.add(signal.id)
        over, ended = completion(after, one, taking(signal))
        entries += ended
        if over is not None:
            return entries, True
        after = after.after(ended[0].kind, ended[0].payload)
    return entries, False


async def opened(asked: Asked) -> Wait | None:
    """The open wait of this call, which the run is parked on (again, after a recovery). Under the run's lock."""
    run = asked.run
    wait = run.record.waits.of_call(asked.key)
    if wait is not None and run.state is RunState.RUNNING:
        await run.write(to=RunState.WAITING, epoch=asked.call.epoch, why={"wait": wait.id})
    return wait


async def withdraw(asked: Asked) -> Body:
    """The program does not wait any more (its task was cancelled). Nothing, when what it waited for came first."""

    async def act() -> Body:
        run = asked.run
        wait = run.record.waits.of_call(asked.key)
        if wait is not None:
            await run.complete_wait(wait, {"outcome": "withdrawn", "at": asked.run.clock.time()})
            run.told(wait.id)
        elif not await asked.entries():  # it overtook its wait, which then finds this
            payload = {"wait": new_id(), "kind": "", "outcome": "withdrawn", "at": asked.run.clock.time()}
            await asked.note(NewEntry(kind="wait.completed", key=asked.key, payload=payload))
        return {}

    return await asked.warm(act)


async def open_wait(
    asked: Asked,
    wait: Wait,
    parts: Sequence[Wait] = (),
    kept: Sequence[NewEntry] = (),
    starts: Body | None = None,
) -> Wait:
    """Record the wait, with the parts of a set and what ``kept`` signals completed of them, and that the run is parked
    on it. starts: of children, by id of their wait. Under the run's lock."""
    run = asked.run
    to = RunState.WAITING if run.state is RunState.RUNNING else None
    await run.write(_started(asked, wait, parts, starts), *kept, to=to, epoch=asked.call.epoch, why={"wait": wait.id})
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


def _started(asked: Asked, wait: Wait, parts: Sequence[Wait], starts: Body | None = None) -> NewEntry:
    payload = {**_payload(wait, parts), "request": asked.request}
    return NewEntry(kind="wait.started", key=asked.key, payload={**payload, "starts": starts} if starts else payload)


def _payload(wait: Wait, parts: Sequence[Wait]) -> Body:
    payload = {"wait": msgspec.to_builtins(wait)}
    return {**payload, "parts": msgspec.to_builtins(parts)} if wait.kind in SETS else payload


def _whole(entries: list[Entry]) -> Entry | None:
    """The entry that ended the call's wait: of a set not one of its parts."""
    return last([entry for entry in entries if "of" not in (entry.payload or {})], "wait.completed")


def answer(kind: str, done: Body) -> Body:
    """What the program is told of a completed wait."""
    timed_out = done["outcome"] == "timed-out"
    if done["outcome"] == "withdrawn":
        return {"kind": kind, "withdrawn": True}
    if kind == "time":
        return {"kind": kind}
    if kind == "signal":
        return {"kind": kind, "value": done.get("value"), "timed_out": timed_out}
    if kind in ("child", "fork"):
        return {"kind": kind, **(done.get("value") or {}), "timed_out": timed_out}
    verdict = done.get("value") or {"approved": False, "comment": "", "values": {}}
    return {"kind": kind, **verdict, "by": done.get("by", ""), "at": done.get("at", 0.0), "timed_out": timed_out}
