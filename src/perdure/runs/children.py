"""Child runs: started by the wait that another run has for them, told to it at their end, cancelled when nobody waits.
A run may wait for the forks that it made, too (``runs.forking``): they are told to it likewise, and go on without it.

The id of a child is in the entry that opens the wait, before the child is there. So whoever asks again waits for the
same child, a server that ended in between starts it, and no call starts two. A child lives as long as some run waits
for it: when its parent ends, or its wait is withdrawn, loses in a set or is left behind by another way that the program
went, it is cancelled.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import msgspec

from perdure.context.log import ContextLog, Head
from perdure.errors import Conflict, InvalidValue, NotFound, PerdureError
from perdure.model import RunState
from perdure.runs.asking import Asking
from perdure.runs.clock import Clock
from perdure.runs.record import Record, from_head, to_value
from perdure.runs.run import Run
from perdure.runs.states import TERMINAL
from perdure.runs.tokens import new_key
from perdure.runs.waits import Wait

log = logging.getLogger(__name__)

DEEPEST = 16  # runs below each other: an agent that runs itself for ever is stopped somewhere
AT_ONCE = 1000  # children that are looked at in one query
AGAIN_S = 1.0  # after a failure: the database is away, perhaps


class Live(Protocol):
    """The engine, as far as children need it."""

    async def expect(self, run_id: str, record: Record) -> None: ...

    async def adopt(self, head: Head) -> None: ...

    async def cancel(self, run_id: str, reason: str = "", *, clean_up_s: float | None = None) -> None: ...


class Children:
    """Who waits for which child. ``held``: the shelf's; ``spawn``: runs a task of the engine's."""

    def __init__(
        self,
        context: ContextLog,
        live: Live,
        held: Callable[[str], AbstractAsyncContextManager[Run | None]],
        spawn: Callable[[Coroutine[Any, Any, None], str], object],
        clock: Clock,
    ) -> None:
        self._context = context
        self._live = live
        self._held = held
        self._spawn = spawn
        self._clock = clock
        self._is_open = False
        self._waiting: dict[str, set[str]] = {}  # child -> the runs that wait for it: a parent, and forks of it
        self._awaited: dict[str, dict[str, Wait]] = {}  # run -> the children that it waits for

    def open(self, orphans: Iterable[str]) -> None:
        """All runs are taken up. Go on with what a former server was doing; ``orphans``: children that go on."""
        self._is_open = True
        for run_id, waits in self._awaited.items():
            for wait in waits.values():
                # mypy gives a lambda whose parameters have defaults no type
                self._again(lambda run_id=run_id, wait=wait: self._ensure(run_id, wait), wait.awaited)  # type: ignore[misc]
        for child in orphans:
            if child not in self._waiting:
                # mypy gives a lambda whose parameters have defaults no type
                self._again(lambda child=child: self._cancel(child), child)  # type: ignore[misc]

    def awaited(self, run_id: str, wait: Wait) -> None:
        """A wait for a child, or a fork, is open."""
        awaited = wait.awaited
        if awaited not in self._awaited.setdefault(run_id, {}):
            self._awaited[run_id][awaited] = wait
            self._waiting.setdefault(awaited, set()).add(run_id)
            if self._is_open:
                self._again(lambda: self._ensure(run_id, wait), awaited)

    def changed(self, run: Run) -> None:
        """Something was written to a run: perhaps it ended, or does not wait for a child any more."""
        if run.ended and run.id in self._waiting:
            self._again(lambda: self._tell(run.id), run.id)
        if run.id not in self._awaited:
            return
        left = set() if run.ended else {wait.awaited for wait in run.record.waits.open}
        for awaited in self._awaited[run.id].keys() - left:
            self._forget(run.id, awaited)

    # -- beside other servers: a parent and its child may be at two of them

    def taken(self, run_id: str, record: Record) -> None:
        """A run was taken over. What its server, or its parent's, was to cancel may not have been."""
        if record.state in TERMINAL and record.is_parent:
            self._again(lambda: self._cancel_all(run_id), run_id)
        elif record.is_bound:
            self._again(lambda: self._cancel(run_id), run_id)

    async def look(self, is_ours: Callable[[str], bool]) -> None:
        """Children at other servers may have ended."""
        others = [child for child in self._waiting if not is_ours(child)]
        for first in range(0, len(others), AT_ONCE):
            for head in await self._context.heads(ids=others[first : first + AT_ONCE], states=TERMINAL):
                await self._tell(head.run_id)

    def let_go(self) -> None:
        """No run is this server's any more."""
        self._waiting.clear()
        self._awaited.clear()

    async def _cancel_all(self, parent: str) -> None:
        for head in await self._context.heads(parent=parent, released=False):
            await self._cancel(head.run_id)

    async def _is_awaited(self, child: str) -> bool:
        """By a run of any server: the parent, or a fork of it. Other runs are not read, as they may be many."""
        level = [from_head(await self._context.head(child)).parent]
        found = [await self._context.head(level[0])]
        while found:
            if any(_waits_for(from_head(head), child) for head in found):
                return True
            found = [
                head
                for first in range(0, len(level), AT_ONCE)
                for head in await self._context.heads(forks_of=level[first : first + AT_ONCE])
            ]
            level = [head.run_id for head in found]
        return False

    def _forget(self, run_id: str, awaited: str) -> None:
        wait = self._awaited[run_id].pop(awaited)
        if not self._awaited[run_id]:
            del self._awaited[run_id]
        waiting = self._waiting[awaited]
        waiting.discard(run_id)
        if not waiting:
            del self._waiting[awaited]
            if wait.child:
                self._again(lambda: self._cancel(awaited, run_id), awaited)

    def _again(self, act: Callable[[], Awaitable[None]], child: str) -> None:
        """In a task of its own, until it is done."""

        async def work() -> None:
            while True:
                try:
                    return await act()
                except (PerdureError, OSError) as error:
                    log.warning("child run %s: %s (again in %.1f s)", child, error, AGAIN_S)
                    await asyncio.sleep(AGAIN_S)

        self._spawn(work(), f"child-{child}")

    async def _ensure(self, run_id: str, wait: Wait) -> None:
        """The child is there; where it has ended already its parent knows."""
        try:
            head = await self._context.head(wait.awaited)
        except NotFound:
            if wait.run:  # it came here from another home, and left its forks there
                await self._tell_of(wait.run, {"run_id": wait.run, "error": _gone(wait.run)})
                return
            parent = await self._context.head(run_id)
            record = await self._record(parent, wait)
            if wait.child not in self._waiting:
                return
            await self._live.expect(wait.child, record)
            try:
                head = await self._context.create(wait.child, to_value(record))
            except Conflict:  # it was made meanwhile
                return
            await self._live.adopt(head)
            if wait.child not in self._waiting:  # its parent did not wait for it to be there
                await self._cancel(wait.child)
            return
        if from_head(head).state in TERMINAL:
            await self._tell(wait.awaited)
        else:
            await self._live.adopt(head)

    async def _record(self, parent: Head, wait: Wait) -> Record:
        entries = await self._context.find(parent.run_id, parent.branch, wait.key)
        starts = [entry.payload["starts"][wait.id] for entry in entries if wait.id in entry.payload.get("starts", {})]
        if not starts:
            raise NotFound(f"run {parent.run_id} has no entry of the start of its child {wait.child}")
        start, of = starts[0], from_head(parent)
        command = start.get("command", [])  # older logs have only agents
        request = msgspec.structs.replace(
            of.request,
            file="" if command else of.request.file,
            function=start["function"],
            command=command,
            fittings=of.request.fittings.of_child(),
            input=start["input"],
            image="" if of.request.is_replay else start["image"] or of.request.image,
            memory_mib=0 if of.request.is_replay else start["memory_mib"],
            vcpus=0 if of.request.is_replay else start["vcpus"],
            key=None,
            queue=None,  # its parent has a place there, and keeps it until the child has ended
            queue_key=None,
            priority=0,
            name="",
            timeout_s=None,
            active_timeout_s=None,
        )
        return Record(
            state=RunState.QUEUED,
            request=request,
            source=None if command else of.source,
            pack=None if command else of.pack,
            parent=parent.run_id,
            depth=of.depth + 1,
            made_by=of.made_by,
            calls_version=of.calls_version,
            guest_key=new_key(),
        )

    async def _tell(self, child: str) -> None:
        """Complete every wait for a child that has ended."""
        record = from_head(await self._context.head(child))
        told: dict[str, Any] = {"run_id": child}
        told |= {"result": record.result} if record.state is RunState.COMPLETED else {"error": record.error}
        await self._tell_of(child, told)

    async def _tell_of(self, child: str, told: dict[str, Any]) -> None:
        for run_id in list(self._waiting.get(child, ())):
            async with self._held(run_id) as run:
                if run is not None:
                    await _complete(run, child, told)

    async def _cancel(self, child: str, last: str = "") -> None:
        """``last``: who waited for it last, where that is known; else its parent is taken for that."""
        try:
            record = from_head(await self._context.head(child))
            if record.state in TERMINAL:
                return
            if self._context.leases is None or not await self._is_awaited(child):
                left_s = await self._left_s(last or record.parent)
                await self._live.cancel(child, "its parent does not wait for it any more", clean_up_s=left_s)
        except (NotFound, Conflict):
            pass  # it was never started, or it has ended meanwhile

    async def _left_s(self, last: str) -> float | None:
        """How long a child may clean up: as long as who waited for it last has; None: the usual time, as that does not
        end."""
        ending = from_head(await self._context.head(last)).ending
        return None if ending is None else max(0.0, ending.until - self._clock.time())


def _waits_for(record: Record, child: str) -> bool:
    """What was open when a run ended waits for nobody."""
    return record.state not in TERMINAL and any(wait.child == child for wait in record.waits.open)


async def _complete(run: Run, awaited: str, told: dict[str, Any]) -> None:
    async def act() -> None:
        for wait in [wait for wait in run.record.waits.open if wait.awaited == awaited]:  # one; of a fork, perhaps more
            if not run.ended and run.record.waits.find(wait.id) is not None:
                await run.complete_wait(wait, {"outcome": "completed", "value": told, "at": run.clock.time()})

    await run.atomically(act)


def _gone(run_id: str) -> dict[str, Any]:
    return NotFound(f"run {run_id} is not here", hint="Ask where the run was that it is a fork of.").to_json()


def check(record: Record, asking: Asking) -> None:
    """Raises InvalidValue where this run can have no such child."""
    if asking.kind != "child":
        return
    if asking.function and record.source is None:
        hint = 'Give a "command" instead: a program that runs on the same image.'
        raise InvalidValue("this run is of a program: it has no agents to run", hint=hint)
    if asking.command and record.request.is_replay:
        hint = "Run an agent of the same file, or start this one with durability=snapshot."
        raise InvalidValue("this run has no microVM: no program can be its child", hint=hint)
    if record.depth >= DEEPEST:
        hint = "An agent that runs itself needs an end."
        raise InvalidValue(f"this is a child run {record.depth} levels deep: it has no children", hint=hint)
