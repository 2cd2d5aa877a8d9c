"""What nobody will go on from, at this server's node: sandboxes of runs that go on elsewhere (a lost server's, whose
node has come back).

Nobody else can remove them. One is removed only where its run's record, read after the sandbox was seen, says that it
is nobody's any more: the run has another sandbox, in a later epoch than this one's calls; or it has ended, and was let
go of. A sandbox is made in the epoch that its run is in then, and named by the record as long as anybody may go on from
it, so whatever a driver anywhere is doing, its sandbox is not one of those.

And snapshots of sandboxes that do go on: those that a killed server was about to give up are found by the same look.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from perdure.context.log import ContextLog
from perdure.errors import NotFound, PerdureError, Unavailable
from perdure.model import NodePlace
from perdure.runs.clock import Clock
from perdure.runs.ports import Machines, Sandbox
from perdure.runs.record import Record, from_head

log = logging.getLogger(__name__)

AGAIN_S = 10.0  # between two looks at those of runs that others may still go on from
AT_ONCE = 200  # runs in one query: others go on in between


class Strays:
    """``spawn``: runs a task of the engine's."""

    def __init__(
        self, context: ContextLog, machines: Machines, clock: Clock, spawn: Callable[[Any, str], object]
    ) -> None:
        self._context = context
        self._machines = machines
        self._clock = clock
        self._spawn = spawn
        self._is_listed = False
        self._others: dict[str, Sandbox] = {}  # sandboxes that may become strays
        self._next = 0.0  # monotonic
        self._is_looking = False
        self._servers = frozenset[str]()  # that lived at the last look

    def want(self) -> None:
        """There may be some: this server, or its node, has just come back; or another one at this node is lost."""
        self._is_listed, self._next = False, 0.0

    def look(self, is_ours: Callable[[str], bool], servers: frozenset[str]) -> None:
        """With each heartbeat. ``is_ours``: whether a run is this server's; its driver knows its sandboxes.
        ``servers``: that live."""
        if self._servers - servers:
            self.want()
        self._servers = servers
        is_due = self._clock.monotonic() >= self._next and bool(not self._is_listed or self._others)
        if is_due and not self._is_looking:
            self._is_looking = True
            self._spawn(self._look(is_ours), "strays")

    async def look_alone(self, is_ours: Callable[[str], bool]) -> None:
        """Where no heartbeats do: until it succeeded."""
        while self._is_looking or not self._is_listed:
            self.look(is_ours, frozenset())
            await self._clock.sleep_until(self._clock.monotonic() + AGAIN_S)

    async def _look(self, is_ours: Callable[[str], bool]) -> None:
        try:
            await self.sweep(is_ours)
        except (PerdureError, OSError) as error:
            log.info("no look at sandboxes that were left: %s", error)
        finally:
            self._is_looking = False
            self._next = self._clock.monotonic() + AGAIN_S

    async def sweep(self, is_ours: Callable[[str], bool]) -> None:
        """Remove what is nobody's; what another server's run may still go on from is looked at again later."""
        if not self._is_listed:
            self._is_listed = True  # before it is read: who wants another look meanwhile gets one
            try:
                found = await self._machines.of_runs()
                self._others = {one.id: one for one in found}
                await self._forget([one for one in found if len(one.snapshots) > 1])  # the newest is not loose
            except BaseException:
                self._is_listed = False
                raise
        self._others = {name: one for name, one in self._others.items() if not is_ours(one.run_id)}
        records = await self._records({one.run_id for one in self._others.values()})
        for one in list(self._others.values()):
            record = records.get(one.run_id)
            if record is None or one.epoch is None:  # of another database; of somebody's own
                del self._others[one.id]
            elif is_stray(one, record, self._machines.node):
                await self._remove(one)

    async def _forget(self, listed: list[Sandbox]) -> None:
        """What is loose of any run: it stays so."""
        records = await self._records({one.run_id for one in listed})
        for one in listed:
            record = records.get(one.run_id)
            for digest in () if record is None else loose(one, record, self._machines.node):
                log.info("snapshot %s of run %s is given up: its record does not name it", digest, one.run_id)
                try:
                    await self._machines.forget(one.id, digest)
                except Unavailable:
                    raise  # the node is away: all of it once more
                except PerdureError as error:  # it is gone; or it costs space until the run's end, and nothing else
                    log.info("snapshot %s of run %s is not given up: %s", digest, one.run_id, error)

    async def _records(self, runs: Iterable[str]) -> dict[str, Record]:
        found, ids = dict[str, Record](), list(runs)
        for first in range(0, len(ids), AT_ONCE):
            heads = await self._context.heads(ids=ids[first : first + AT_ONCE])
            found |= {head.run_id: from_head(head) for head in heads}
        return found

    async def _remove(self, seen: Sandbox) -> None:
        """As it is now: what was seen may be old."""
        now = await self._now(seen)
        record = (await self._records([seen.run_id])).get(seen.run_id)
        if now is not None and record is not None and is_stray(now, record, self._machines.node):
            what = "sandbox %s of run %s, epoch %s, is removed: the run is %s in epoch %d, elsewhere"
            log.info(what, now.id, now.run_id, now.epoch, record.state, record.epoch)
            try:
                await self._machines.discard(now.id)
            except NotFound:
                pass  # it is gone
        if now is None or record is None or is_stray(now, record, self._machines.node):
            self._others.pop(seen.id, None)

    async def _now(self, seen: Sandbox) -> Sandbox | None:
        """None: it is gone."""
        try:
            info = await self._machines.inspect(seen.id)
        except NotFound:
            return None
        return msgspec.structs.replace(seen, epoch=info.epoch)


def loose(one: Sandbox, record: Record, here: NodePlace | None) -> list[str]:
    """The snapshots of a run's sandbox at the node ``here`` that nobody goes on from, by the record that was read after
    it: the server that was to give them up, or to write them down, was killed. The newest may still be on its way into
    the record, and all of them before one that is there were written down, or never will be."""
    if record.released or not _is_named(one, record, here) or any(kept.branch == 0 for kept in record.restorable):
        return []
    named = {kept.digest for kept in record.restorable}
    unnamed, found = list[str](), list[str]()
    for held in one.snapshots:
        if not named.isdisjoint(held.digests):
            found += unnamed
            unnamed = []
        elif held.position is not None and held.position.run_id == one.run_id:  # others are a person's, or of a fork
            unnamed.append(held.digests[0])
    return found


def _is_named(one: Sandbox, record: Record, here: NodePlace | None) -> bool:
    return record.sandbox_id == one.id and (record.node is None or here is None or record.node.id == here.id)


def is_stray(one: Sandbox, record: Record, here: NodePlace | None) -> bool:
    """Whether nobody goes on from a sandbox at the node ``here``, by the record of its run that was read after it."""
    if one.epoch is None or one.epoch > record.epoch:
        return False
    if record.released:
        return True
    return not _is_named(one, record, here) and one.epoch < record.epoch
