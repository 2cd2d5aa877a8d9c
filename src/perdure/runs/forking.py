"""A program forks its own run: the call returns once in each branch.

The ids of the forks are in the entry that the call writes, before any of them is there, as a child's is: a server that
ended in between makes those, and no others. Each fork's log begins with an entry of the same call that has its number,
so whoever asks there, at whatever time and in whatever machine, is told which fork it is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import msgspec

from perdure.context.log import NewEntry
from perdure.errors import Conflict, InvalidValue, NotFound, from_json
from perdure.model import Entry, Frozen, RunOrigin, new_id
from perdure.runs.asked import Asked, Body, last
from perdure.runs.asking import Asking
from perdure.runs.children import DEEPEST
from perdure.runs.record import Record, from_head
from perdure.runs.travel import Moment, forked
from perdure.runs.wishes import Wish

FORKS_MAX = 100  # by one request
KIND = "fork"
Make = Callable[[Entry], Awaitable[None]]  # the forks that this entry names, as far as they are not there


class Forking(Frozen, frozen=True, kw_only=True):
    """Body of ``/perdure/v1/fork``."""

    count: int = 1

    def check(self, record: Record) -> None:
        """Raises InvalidValue: this run is not forked so."""
        if not 1 <= self.count <= FORKS_MAX:
            raise InvalidValue(f"{self.count} forks were asked for", hint=f"It is 1 to {FORKS_MAX} at once.")
        if record.depth >= DEEPEST:
            hint = "A program that forks itself needs an end."
            raise InvalidValue(f"this run is {record.depth} levels deep: it makes no forks", hint=hint)


async def fork(asked: Asked, make: Make) -> Body:
    """``{"number", "run_id", "forks"}``: 0 in the run that asks, once its forks are there, and from 1 on in them."""
    wanted, run = asked.convert(Forking), asked.run

    async def act() -> Entry | Wish:
        known = await asked.known()
        if known:
            return last(known, KIND) or known[-1]
        wanted.check(run.record)
        if run.record.steps:
            hint = "What the step does would be done by each of them, too: fork between steps."
            raise Conflict("a fork within a step", hint=hint)
        if run.record.request.is_replay:  # its log is all that its forks go on from
            tip = await run.context.head(run.id)
            wish = Wish(key=asked.key, request=asked.request, forks=_ids(wanted))
            return (await asked.note(noted(wish, run.id, tip.branch, tip.seq)))[0]
        found = next((wish for wish in run.wishes if (wish.key, wish.request) == (asked.key, asked.request)), None)
        if found is None:
            found = Wish(key=asked.key, request=asked.request, forks=_ids(wanted))
            run.wishes.append(found)
            run.notify()
        return found

    while True:
        found = await asked.warm(act)
        if isinstance(found, Entry):
            break
        # mypy gives a lambda whose parameters have defaults no type
        await run.until(lambda wish=found: wish.is_over or asked.is_over())  # type: ignore[misc]
    if found.kind != KIND:
        raise from_json(found.payload["checkpoint_failed"])
    if not found.payload["number"] and found.time >= run.record.taken_up:  # else they are where it came from
        await make(found)
    return {"number": found.payload["number"], "run_id": run.id, "forks": found.payload["forks"]}


def _ids(wanted: Forking) -> list[str]:
    return [new_id() for _ in range(wanted.count)]


def noted(wish: Wish, run_id: str, branch: int, seq: int) -> NewEntry:
    """What the log of the run that is forked has of it; its forks leave at this position."""
    where = {"run": run_id, "branch": branch, "at": seq}
    payload = {"number": 0, "forks": wish.forks, **where, "request": wish.request}
    return NewEntry(kind=KIND, key=wish.key, payload=payload)


def begun(maker: Record, entry: Entry, number: int, origin: RunOrigin, at: Moment, now: float) -> Body:
    """Fork ``number`` of those that an entry names: the ``record`` that it begins with, and its first ``entries``.

    It is part of its maker's work, as a child is, and passes through no queue: the maker, which may wait for it, keeps
    its place there until it has ended.
    """
    request = msgspec.structs.replace(maker.request, queue=None, queue_key=None, priority=0)
    parent = msgspec.structs.replace(maker, request=request, depth=maker.depth + 1)
    record, entries = forked(parent, origin, at, "", now)
    first = NewEntry(kind=KIND, key=entry.key, payload={**entry.payload, "number": number})
    return {"record": record, "entries": [first, *entries]}


async def check(asked: Asked, askings: Sequence[Asking]) -> None:
    """Raises InvalidValue: to wait for it a run, or one that it is a fork of, made the fork."""
    forks = [asking.run for asking in askings if asking.kind == KIND]
    if not forks or await asked.entries():
        return
    run = asked.run
    way = {run.id, *(part.run_id for part in await run.context.lineage(run.id, run.branch))}
    for fork_id in forks:
        try:
            origin = from_head(await run.context.head(fork_id)).origin
        except NotFound:
            origin = None
        if origin is None or origin.run_id not in way:
            hint = "A program waits for the forks that it made itself."
            raise InvalidValue(f"this run made no fork {fork_id[:60]!r}", hint=hint)
