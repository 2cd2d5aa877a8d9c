"""Starts of runs: a run is made in the log, once for its key, and then moved along, whatever becomes of who asked."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any, Protocol

import msgspec

from perdure import __version__
from perdure.context.log import ContextLog, Head, NewEntry
from perdure.errors import Conflict, LogConflict, PerdureError, Unavailable
from perdure.model import RunState, new_id
from perdure.runs import keys
from perdure.runs.bounds import check_value
from perdure.runs.clock import Clock
from perdure.runs.doubt import settle_made
from perdure.runs.driver import Settings
from perdure.runs.packs import Packs
from perdure.runs.queueing import Queues
from perdure.runs.record import Record, StartRequest, from_head, to_value
from perdure.runs.replay import CALLS_VERSION
from perdure.runs.run import Run
from perdure.runs.tasks import Tasks
from perdure.runs.tokens import new_key

log = logging.getLogger(__name__)


class Live(Protocol):
    """The engine, as far as starts need it."""

    def has(self, run_id: str) -> bool: ...

    def take_up(self, head: Head) -> Run: ...

    def drive(self, run: Run, *, is_noted: bool = True) -> None: ...

    async def expect(self, run_id: str, record: Record) -> None: ...

    async def forget(self, run_id: str) -> None: ...


class Starts:
    """Made by the engine."""

    def __init__(
        self,
        context: ContextLog,
        live: Live,
        packs: Packs,
        queues: Queues,
        tasks: Tasks,
        settings: Settings,
        clock: Clock,
    ) -> None:
        self._context = context
        self._live = live
        self._packs = packs
        self._queues = queues
        self._tasks = tasks
        self._settings = settings
        self._clock = clock

    async def start(self, request: StartRequest) -> tuple[str, bool]:
        """See ``Engine.start``; the run's id."""
        request.check()
        check_value(request.input, "the input")
        await self._queues.check(request)
        source = await self._context.put_blob(request.source.encode()) if request.source else None
        packed = await self._packs.of(request)
        policy = request.policy.over(self._settings.policy)
        budget = request.budget.over(self._settings.budgets.of(request.names))
        kept = msgspec.structs.replace(request, source="", modules={}, pack=None, policy=policy, budget=budget)
        record = Record(
            state=RunState.QUEUED,
            request=kept,
            source=source,
            pack=packed,
            made_by=__version__,
            calls_version=CALLS_VERSION,
            guest_key=new_key(),
        )
        return await self._tasks.to_its_end(self._start(to_value(record), request))

    async def _start(self, value: Any, request: StartRequest) -> tuple[str, bool]:
        with self._queues.expected(request):
            head, is_new = await self._create(value, request)
        await (self._begin(head) if is_new else self.adopt(head))
        return head.run_id, is_new

    async def _begin(self, head: Head) -> None:
        """Move a run along that was made just now; also where its first entry cannot be written yet."""
        if self._live.has(head.run_id):
            return
        run, is_noted = self._live.take_up(head), False
        try:
            await self.queued(run)
            is_noted = True
        finally:
            self._live.drive(run, is_noted=is_noted)

    async def adopt(self, head: Head) -> None:
        """Move a run along that nobody does: it was made, and whoever asked for it was not told."""
        if self._live.has(head.run_id) or from_head(head).state is not RunState.QUEUED:
            return
        leases = self._context.leases
        if leases is None or (await leases.owner(head.run_id)).server == leases.server:
            await self._begin(head)

    async def _create(self, value: Any, request: StartRequest) -> tuple[Head, bool]:
        """The new run of this request, or the one that has its key."""
        run_id = new_id()
        await self._live.expect(run_id, msgspec.convert(value, Record))
        try:
            head, is_new = await self._create_as(run_id, value, request)
        except Conflict:
            await self._live.forget(run_id)
            raise
        except Unavailable:
            self._tasks.spawn(self._settle(run_id), f"start-{run_id}")
            raise
        if not is_new:
            await self._live.forget(run_id)
        return head, is_new

    async def _settle(self, run_id: str) -> None:
        """The database went away with the answer."""
        if not await settle_made(self._context, run_id, self.adopt):
            with suppress(PerdureError, OSError):
                await self._live.forget(run_id)

    async def _create_as(self, run_id: str, value: Any, request: StartRequest) -> tuple[Head, bool]:
        replacing = None
        while True:
            key = keys.scoped(request)
            head = await self._context.create(run_id, value, key=key, replacing=replacing)
            if head.run_id == run_id:
                return head, True
            older = from_head(head).request
            if not keys.is_over(older, head.created, self._clock.time()):
                keys.check_same(head, older, request)
                return head, False
            replacing = head.run_id

    # -- the first entry

    async def queued(self, run: Run) -> None:
        """The first entry of a log: what was asked for."""

        async def act() -> None:
            if (await self._context.head(run.id)).seq == 0:
                record = run.record
                asked = {"request": msgspec.to_builtins(record.request), "source": record.source, "pack": record.pack}
                asked |= {"made_by": record.made_by, "calls_version": record.calls_version}
                with suppress(LogConflict):  # a write of before, whose answer was lost, has come through meanwhile
                    await run.write(NewEntry(kind="run.queued", payload=asked), expected_seq=0)

        await run.atomically(act)

    async def note(self, run: Run) -> None:
        """Write the first entry as soon as the database lets us."""
        pause_s = self._settings.backoff_s
        while run.state is RunState.QUEUED:
            try:
                await self.queued(run)
                return
            except (PerdureError, OSError) as error:
                log.warning("run %s, %s: %s (again in %.1f s)", run.id, run.state, error, pause_s)
            await self._clock.sleep_until(self._clock.monotonic() + pause_s)
            pause_s = min(pause_s * 2, self._settings.backoff_max_s)
