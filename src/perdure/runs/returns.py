"""Returns to an earlier moment of a run: other runs go on from there, or it does itself (``runs.travel``)."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol
from weakref import WeakValueDictionary

from perdure.context.log import ContextLog, Head
from perdure.errors import InvalidValue, PerdureError
from perdure.model import RunOrigin, new_id
from perdure.runs import checkpoints, travel
from perdure.runs.clock import Clock
from perdure.runs.ports import ModelCalls
from perdure.runs.queueing import Queues
from perdure.runs.record import from_head, to_value
from perdure.runs.run import Run
from perdure.runs.shelf import Shelf

log = logging.getLogger(__name__)

FORKS_MAX = 100  # by one request
CAPTURE_S = 30.0  # for the checkpoint that a fork of a warm machine goes on from


class Live(Protocol):
    """The engine, as far as returns need it."""

    def take_up(self, head: Head) -> Run: ...

    def drive(self, run: Run) -> None: ...


class Returns:
    """Made by the engine."""

    def __init__(
        self, context: ContextLog, live: Live, shelf: Shelf, queues: Queues, models: ModelCalls, clock: Clock
    ) -> None:
        self._context = context
        self._live = live
        self._shelf = shelf
        self._queues = queues
        self._models = models
        self._clock = clock
        self._rewinds: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # by run

    async def fork(self, run_id: str, at: int | None, count: int, name: str) -> list[str]:
        """See ``Engine.fork``; the ids of the new runs."""
        if not 1 <= count <= FORKS_MAX:
            raise InvalidValue(f"{count} forks were asked for", hint=f"It is 1 to {FORKS_MAX} at once.")
        if at is None:
            await self._captured(run_id)
        head = await self._context.head(run_id)
        await self._queues.check(from_head(head).request)  # a fork waits in it for its turn
        seq = await travel.newest(self._context, head) if at is None else at
        moment = await travel.moment(self._context, run_id, head.branch, seq)
        origin = RunOrigin(run_id=run_id, branch=head.branch, seq=seq)
        made = []
        for number in range(1, count + 1):
            named = f"{name}-{number}" if name and count > 1 else name
            record, entries = travel.forked(from_head(head), origin, moment, named, self._clock.time())
            new = await self._context.branch_off(
                new_id(),
                to_value(record),
                entries,
                parent_run=run_id,
                parent=head.branch,
                fork_seq=seq,
                epoch=moment.epoch,
            )
            self._live.drive(self._live.take_up(new))
            made.append(new.run_id)
        return made

    async def _captured(self, run_id: str) -> None:
        """Take a checkpoint of a warm machine, so that forks of this moment have all that is in its memory. Where that
        is not possible now they go on from an older one, or the start, as the log has it."""
        run = self._shelf.live.get(run_id)
        if run is None or not run.answers or run.record.steps or run.activity.speaking or run.record.request.is_replay:
            return
        try:
            async with asyncio.timeout(CAPTURE_S):
                await checkpoints.of_person(run, keep=False)
        except (PerdureError, TimeoutError) as error:
            log.info("run %s is forked without a checkpoint: %s", run_id, error)

    async def rewind(self, run_id: str, to: int) -> None:
        """See ``Engine.rewind``."""
        lock = self._rewinds.setdefault(run_id, asyncio.Lock())  # two make not two of one that has ended
        async with lock, self._shelf.held(run_id) as found:
            run = found or self._live.take_up(await self._context.head(run_id))
            try:
                await travel.rewind(run, to)
            except BaseException:
                if not run.driven:
                    self._shelf.live.pop(run_id, None)  # it stays ended, or another server's
                raise
            await self._models.forget(run_id)  # what was asked for the old branch is of no use
            if not run.driven:
                self._shelf.live[run_id] = run
                self._live.drive(run)
