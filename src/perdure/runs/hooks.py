"""Hooks: somebody outside is told of a run's states. At least once, in order, each delivery with an id.

The log is the outbox: an arrow that a run took is an entry, and what is kept beside (``kept``, kind ``hook``) is how
far a hook was told of a run. So nothing is lost between an arrow and its delivery, and a server that ends between a
delivery and that note delivers again, with the same id. A hook that is down holds up nobody but itself.

Of several servers on one database the one that has the run delivers. What it had not delivered when the run was over is
its own all the same; when it is lost, it is anybody's: who is first by compare-and-set.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, Protocol

import msgspec

from perdure.context.leases import Leases
from perdure.context.log import ContextLog, Kept, canonical
from perdure.errors import LogConflict, NotFound, PerdureError
from perdure.model import Entry, Frozen
from perdure.runs.clock import Clock
from perdure.runs.hook import Hook
from perdure.runs.record import Record, from_head
from perdure.runs.run import Run
from perdure.runs.states import TERMINAL

log = logging.getLogger(__name__)
Spawn = Callable[[Coroutine[Any, Any, None], str], "asyncio.Task[None]"]

KIND = "hook"
FIRST_S, LONGEST_S = 1.0, 600.0  # pauses between attempts
GIVE_UP_S = 3 * 86400.0
AT_ONCE = 32  # deliveries


class Sender(Protocol):
    async def send(self, hook: Hook, delivery: str, body: bytes) -> None:
        """Any PerdureError or OSError: it was not taken, and is sent again."""
        ...


class Told(Frozen, frozen=True, kw_only=True):
    """How far a hook was told of a run."""

    run_id: str
    hook: str  # a name of the settings, or the number of one that the run brings along
    branch: int = 1
    seq: int = 0
    server: str = ""  # that delivers, of several


class Courier:
    """``hooks``: those of the settings, by name. ``secret``: for those that runs bring along."""

    def __init__(
        self, context: ContextLog, clock: Clock, sender: Sender, hooks: Mapping[str, Hook], secret: str = ""
    ) -> None:
        self._context = context
        self._clock = clock
        self._sender = sender
        self._hooks = hooks
        self._secret = secret
        self._told: dict[str, dict[str, Told]] = {}  # by run, by hook: those that are not through
        self._busy: dict[str, asyncio.Task[None]] = {}
        self._again: set[str] = set()  # of those: something was written meanwhile
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._servers: frozenset[str] = frozenset()  # that lived since we last looked for what is anybody's
        self._claiming: asyncio.Task[None] | None = None
        self._spawn: Spawn

    async def open(self, spawn: Spawn) -> None:
        """Go on with what a former server had not delivered; beside other servers that comes with ``take`` and
        ``look``."""
        self._spawn = spawn
        if self._context.leases is not None:
            return
        for kept in await self._context.kept(KIND):
            told = msgspec.convert(kept.value, Told)
            self._told.setdefault(told.run_id, {})[told.hook] = told
        for run_id in list(self._told):
            self._begin_all(run_id)

    async def expect(self, run_id: str, record: Record) -> None:
        """A run is about to be made: from now on its hooks are owed."""
        for name in self._names(record):
            told = Told(run_id=run_id, hook=name, server=self._server)
            await self._context.keep(KIND, _name(told), msgspec.to_builtins(told))
            self._told.setdefault(run_id, {})[name] = told

    async def take(self, run_id: str, record: Record) -> None:
        """A run that another server had: its hooks are owed by us now."""
        for name in self._names(record):
            for kept in await self._context.kept(KIND, f"{run_id}/{name}"):
                await self._claim(kept)
        self._begin_all(run_id)

    async def _claim(self, kept: Kept) -> None:
        """Ours to deliver from now on. LogConflict, NotFound: another server was first."""
        told = msgspec.structs.replace(msgspec.convert(kept.value, Told), server=self._server)
        value = msgspec.to_builtins(told)
        await self._context.keep(KIND, kept.name, value, expected_version=kept.version)
        self._told.setdefault(told.run_id, {})[told.hook] = told

    def look(self, servers: frozenset[str]) -> None:
        """These servers live. What one that is gone has not delivered of runs that nobody has is anybody's."""
        gone = self._servers - servers
        if self._servers:
            self._servers |= servers  # who began since may be lost, too
        if (gone or not self._servers) and (self._claiming is None or self._claiming.done()):
            self._claiming = self._spawn(self._claim_all(servers, gone), "hooks-of-lost-servers")

    async def _claim_all(self, servers: frozenset[str], gone: frozenset[str]) -> None:
        leases = self._context.leases
        assert leases is not None
        found = await self._context.kept(KIND)
        living = {lease.server for lease in await leases.leases()}  # only now: who keeps some of it began before
        random.shuffle(found)  # others look, too
        for kept in found:
            told = msgspec.convert(kept.value, Told)
            is_known = told.hook in self._hooks or told.hook.isdigit()
            if told.server in living or not is_known or told.hook in self._told.get(told.run_id, {}):
                continue
            with suppress(LogConflict, NotFound):
                if await self._is_free(leases, told.run_id):
                    await self._claim(kept)
                    self._begin_all(told.run_id)
        self._servers = self._servers - gone | servers | living  # not before: what failed on the way is done again

    async def _is_free(self, leases: Leases, run_id: str) -> bool:
        """Nobody has the run: it has ended, or was not made."""
        try:
            return not (await leases.owner(run_id)).server
        except NotFound:
            return True

    async def let_go(self) -> None:
        """This server has lost its lease, and everything with it."""
        tasks = [*self._busy.values(), *([self._claiming] if self._claiming is not None else [])]
        self._told.clear()
        self._servers, self._claiming = frozenset(), None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._busy.clear()  # one that is cancelled before it began does not get to that itself

    @property
    def _server(self) -> str:
        leases = self._context.leases
        return "" if leases is None else leases.server

    def _names(self, record: Record) -> list[str]:
        return [*self._hooks, *map(str, range(len(record.request.hooks)))]

    async def forget(self, run_id: str) -> None:
        """It was not made."""
        for told in self._told.pop(run_id, {}).values():
            await self._context.drop(KIND, _name(told))

    def changed(self, run: Run) -> None:
        """Something was written to a run."""
        if run.id in self._told:
            self._begin_all(run.id)

    def _begin_all(self, run_id: str) -> None:
        for told in list(self._told.get(run_id, {}).values()):
            name = _name(told)
            if name in self._busy:
                self._again.add(name)
            else:
                self._busy[name] = self._spawn(self._deliver(run_id, told.hook), f"hook-{name}")

    async def _deliver(self, run_id: str, hook_name: str) -> None:
        """Tell one hook all that there is to tell of a run by now."""
        name, pause_s = f"{run_id}/{hook_name}", FIRST_S
        try:
            while hook_name in self._told.get(run_id, {}):
                try:
                    self._again.discard(name)
                    if not await self._next(run_id, hook_name) and name not in self._again:
                        return
                    pause_s = FIRST_S
                except (PerdureError, OSError) as error:  # of the database, or what gave up on a delivery
                    log.warning("hook %s of run %s: %s (again in %.0f s)", hook_name, run_id, error, pause_s)
                    await self._pause(pause_s)
                    pause_s = min(pause_s * 2, LONGEST_S)
        finally:
            self._busy.pop(name, None)

    async def _next(self, run_id: str, hook_name: str) -> bool:
        """One page of the run's log; False when there was nothing new."""
        told = self._told[run_id][hook_name]
        try:
            head = await self._context.head(run_id)
        except NotFound:  # a server that ended before it was made
            await self._through(told)
            return False
        if head.pruned:  # there is nothing left to tell
            await self._through(told)
            return False
        record = from_head(head)
        hook = self._find(record, hook_name)
        after = await self._after(told, head.branch)
        page = await self._context.read(run_id, branch=head.branch, after=after, expand=False)
        for entry in page:
            state = entry.kind.removeprefix("run.")
            if hook is not None and entry.kind == f"run.{state}" and state in hook.states:
                whole = (await self._context.read(run_id, branch=head.branch, after=entry.seq - 1, limit=1))[0]
                await self._send(hook, hook_name, record, whole)
                await self._note(msgspec.structs.replace(told, branch=head.branch, seq=entry.seq))
        if not page:
            if record.state in TERMINAL:  # a former server ended just before it could say so
                await self._through(told)
            return False
        last = msgspec.structs.replace(told, branch=head.branch, seq=page[-1].seq)
        if await self._is_all(last):
            await self._through(last)
        else:
            self._told[run_id][hook_name] = last  # what it was not told of needs no note
        return True

    async def _is_all(self, told: Told) -> bool:
        """There is nothing more to tell of the run. It may have gone on meanwhile, also on another branch."""
        head = await self._context.head(told.run_id)
        if head.branch != told.branch or from_head(head).state not in TERMINAL:
            return False
        return not await self._context.read(told.run_id, branch=told.branch, after=told.seq, limit=1)

    def _find(self, record: Record, name: str) -> Hook | None:
        """None: it is not in the settings any more."""
        own = record.request.hooks
        if name.isdigit() and name not in self._hooks:
            hook = own[int(name)] if int(name) < len(own) else None
            return None if hook is None else Hook(url=hook.url, states=hook.states, secret=self._secret)
        return self._hooks.get(name)

    async def _after(self, told: Told, branch: int) -> int:
        """Where the run's current branch goes on from what was told."""
        if told.branch == branch:
            return told.seq
        parents = {one.branch: one for one in await self._context.branches(told.run_id)}
        after, at = float(told.seq), branch
        while at != told.branch:
            parent = parents[at].parent
            if parent is None:
                break
            after, at = min(after, parents[at].fork_seq), parent
        return int(after)

    async def _send(self, hook: Hook, name: str, record: Record, entry: Entry) -> None:
        """Until it is taken, or was refused for three days."""
        delivery = f"{entry.run_id}:{entry.branch}:{entry.seq}"
        request = record.request
        body = canonical(
            {
                "id": delivery,
                "hook": name,
                "run_id": entry.run_id,
                "state": entry.kind.removeprefix("run."),
                "at": entry.time,
                "agent": request.agent or " ".join(request.command),
                "name": request.name,
                "tags": request.tags,
                "details": entry.payload,
            }
        )
        pause_s, give_up_at = FIRST_S, self._clock.time() + GIVE_UP_S
        while True:
            try:
                async with self._slots:
                    await self._sender.send(hook, delivery, body)
                return
            except (PerdureError, OSError) as error:
                if self._clock.time() >= give_up_at:
                    log.error("hook %s: gave up on delivery %s: %s", name, delivery, error)
                    return
                log.warning("hook %s: delivery %s: %s (again in %.0f s)", name, delivery, error, pause_s)
            await self._pause(pause_s)
            pause_s = min(pause_s * 2, LONGEST_S)

    async def _pause(self, seconds: float) -> None:
        await self._clock.sleep_until(self._clock.monotonic() + seconds)

    async def _note(self, told: Told) -> None:
        await self._context.keep(KIND, _name(told), msgspec.to_builtins(told))
        self._told[told.run_id][told.hook] = told

    async def _through(self, told: Told) -> None:
        """The run has ended, and the hook knows all of it."""
        await self._context.drop(KIND, _name(told))
        left = self._told.get(told.run_id, {})
        left.pop(told.hook, None)
        if not left:
            self._told.pop(told.run_id, None)


def _name(told: Told) -> str:
    return f"{told.run_id}/{told.hook}"
