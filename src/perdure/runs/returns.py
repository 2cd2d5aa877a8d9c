"""Returns to an earlier moment of a run: other runs go on from there, or it does itself (``runs.travel``)."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Protocol
from weakref import WeakValueDictionary

from perdure.context.log import ContextLog, Head, NewEntry
from perdure.errors import Conflict, InvalidValue, NotFound, PerdureError, Unavailable
from perdure.model import Entry, RunOrigin, new_id
from perdure.runs import checkpoints, forking, forkkeys, travel
from perdure.runs.clock import Clock
from perdure.runs.doubt import settle_made
from perdure.runs.forking import FORKS_MAX
from perdure.runs.forkkeys import Forks, Wanted
from perdure.runs.keys import check_key
from perdure.runs.ports import ModelCalls
from perdure.runs.queueing import Queues
from perdure.runs.record import Record, from_head, to_value
from perdure.runs.run import Run
from perdure.runs.shelf import Shelf
from perdure.runs.tasks import Tasks

log = logging.getLogger(__name__)

CAPTURE_S = 30.0  # for the checkpoint that a fork of a warm machine goes on from


class Live(Protocol):
    """The engine, as far as returns need it."""

    def take_up(self, head: Head) -> Run: ...

    def drive(self, run: Run) -> None: ...

    async def adopt(self, head: Head) -> None: ...


class Returns:
    """Made by the engine."""

    def __init__(
        self,
        context: ContextLog,
        live: Live,
        shelf: Shelf,
        queues: Queues,
        tasks: Tasks,
        models: ModelCalls,
        clock: Clock,
    ) -> None:
        self._context = context
        self._live = live
        self._shelf = shelf
        self._queues = queues
        self._tasks = tasks
        self._models = models
        self._clock = clock
        self._rewinds: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # by run

    async def fork(self, run_id: str, wanted: Wanted, key: str | None) -> tuple[list[str], bool]:
        """See ``Engine.fork_once``; the ids of the runs."""
        if not 1 <= wanted.count <= FORKS_MAX:
            raise InvalidValue(f"{wanted.count} forks were asked for", hint=f"It is 1 to {FORKS_MAX} at once.")
        if key is not None:
            check_key(key)
            older = await forkkeys.found(self._context, run_id, key, wanted)
            if older is not None:
                await self._make_up(run_id, older)
                return older.runs, False
        if wanted.at is None:
            await self._captured(run_id)
        head = await self._context.head(run_id)
        await self._queues.check(from_head(head).request)  # a fork waits in it for its turn
        seq = await travel.newest(self._context, head) if wanted.at is None else wanted.at
        moment = await travel.moment(self._context, run_id, head.branch, seq)
        runs = [new_id() for _ in range(wanted.count)]
        forks, is_new = Forks(wanted=wanted, branch=head.branch, seq=seq, runs=runs), True
        if key is not None:
            forks, is_new = await forkkeys.keep(self._context, run_id, key, forks)
        if is_new:
            for number in range(wanted.count):
                with suppress(Conflict):  # of the same key: somebody who asked again was faster with this one
                    await self._make(head, forks, number, moment)
        else:
            await self._make_up(run_id, forks)
        return forks.runs, is_new

    async def _make(self, head: Head, forks: Forks, number: int, moment: travel.Moment) -> None:
        name, run_id = forks.wanted.name, head.run_id
        named = f"{name}-{number + 1}" if name and forks.wanted.count > 1 else name
        origin = RunOrigin(run_id=run_id, branch=forks.branch, seq=forks.seq)
        record, entries = travel.forked(from_head(head), origin, moment, named, self._clock.time())
        await self._branch_off(forks.runs[number], record, entries, moment)

    async def _branch_off(self, fork_id: str, record: Record, entries: list[NewEntry], moment: travel.Moment) -> None:
        assert record.origin is not None
        with self._queues.expected(record.request):
            try:
                new = await self._context.branch_off(
                    fork_id,
                    to_value(record),
                    entries,
                    parent_run=record.origin.run_id,
                    parent=record.origin.branch,
                    fork_seq=record.origin.seq,
                    epoch=moment.epoch,
                )
            except Unavailable:
                self._tasks.spawn(self._settle_made(fork_id), f"fork-{fork_id}")
                raise
        self._live.drive(self._live.take_up(new))

    async def fork_itself(self, entry: Entry) -> None:
        """See ``forking``: the forks that a run's program asked for, by the entry of its call."""
        await self._tasks.to_its_end(self._fork_itself(entry))

    async def _fork_itself(self, entry: Entry) -> None:
        run_id = entry.payload["run"]
        origin = RunOrigin(run_id=run_id, branch=entry.payload["branch"], seq=entry.payload["at"])
        moment: travel.Moment | None = None
        for number, fork_id in enumerate(entry.payload["forks"], 1):
            try:
                await self._live.adopt(await self._context.head(fork_id))
            except NotFound:
                moment = moment or await travel.moment(self._context, run_id, origin.branch, origin.seq)
                maker = from_head(await self._context.head(run_id))
                begun = forking.begun(maker, entry, number, origin, moment, self._clock.time())
                with suppress(Conflict):  # it is made by somebody else just now: the call was asked twice
                    await self._branch_off(fork_id, begun["record"], begun["entries"], moment)

    async def _settle_made(self, fork_id: str) -> None:
        """The database went away with the answer."""
        await settle_made(self._context, fork_id, self._live.adopt)

    async def _make_up(self, run_id: str, forks: Forks) -> None:
        """Those that whoever was first had not made, or was not told of."""
        for number, fork_id in enumerate(forks.runs):
            try:
                await self._live.adopt(await self._context.head(fork_id))
            except NotFound:
                head = await self._context.head(run_id)
                await self._queues.check(from_head(head).request)
                moment = await travel.moment(self._context, run_id, forks.branch, forks.seq)
                with suppress(Conflict):  # it is made by somebody else just now
                    await self._make(head, forks, number, moment)

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

    async def rewind(self, run_id: str, to: int, key: str | None) -> None:
        """See ``Engine.rewind``."""
        if key is not None:
            check_key(key)
        lock = self._rewinds.setdefault(run_id, asyncio.Lock())  # two make not two of one that has ended
        async with lock, self._shelf.held(run_id) as found:
            if key is not None and await travel.is_rewound(self._context, run_id, to, key):
                return
            run = found or self._live.take_up(await self._context.head(run_id))
            try:
                await travel.rewind(run, to, key)
            except BaseException:
                if run.doubt.is_open:
                    self._tasks.spawn(self._settled(run), f"rewind-{run_id}")
                elif not run.driven:
                    self._shelf.live.pop(run_id, None)  # it stays ended, or another server's
                raise
            await self._models.forget(run_id)  # what was asked for the old branch is of no use
            if not run.driven:
                self._shelf.live[run_id] = run
                self._live.drive(run)

    async def _settled(self, run: Run) -> None:
        """The database went away with the answer. It stays ended, or another server's, if it was not taken back."""
        await run.doubt.settled()
        if run.driven or run.is_let_go:
            return
        if run.record.released:
            self._shelf.live.pop(run.id, None)
        else:
            self._live.drive(run)
