"""All runs of one server: started, driven, found again after a restart, and their calls. What people ask of them is
answered at the desk (``runs.desk``).

Only one engine may drive a run: on SQLite the log's file lock sees to that, on a database of several servers their
leases (``runs.tenure``).
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from perdure.context.log import ContextLog, Head
from perdure.errors import LeaseLost, PerdureError, StaleEpoch
from perdure.model import Answer, Call, CallsEndpoint, RunInfo, RunState
from perdure.runs import ends, limits
from perdure.runs.calls import Calls
from perdure.runs.children import Children
from perdure.runs.clock import SYSTEM, Clock
from perdure.runs.desk import Desk
from perdure.runs.driver import Driver, Settings
from perdure.runs.forkkeys import Wanted
from perdure.runs.hooks import Courier
from perdure.runs.joint import JointBudgets
from perdure.runs.packs import Packs
from perdure.runs.ports import Machines, ModelCalls, SecretCalls
from perdure.runs.pushes import LATER_S
from perdure.runs.queueing import Queues
from perdure.runs.record import Record, StartRequest, from_head
from perdure.runs.retention import Retention
from perdure.runs.returns import Returns
from perdure.runs.roads import Roads
from perdure.runs.run import Run
from perdure.runs.schedules import Schedules
from perdure.runs.starts import Starts
from perdure.runs.strays import Strays
from perdure.runs.tasks import Tasks
from perdure.runs.tenure import Tenure
from perdure.runs.timers import Timers
from perdure.runs.tokens import Tokens
from perdure.runs.waits import Wait

LIMIT = "limit:"  # and the run's id: what a deadline is of that is no wait's
PUSH = "push:"  # and the run's id: its snapshot is to be brought to the store once more
SCHEDULE = "schedule:"
DEADLINES_MAX = 16  # of waits of a run that are over
QUEUE = "queue:"  # and its name: what a deadline is of that is no run's


class Engine(Desk):
    """Made by ``open``; ``close`` leaves every machine as it is: the next engine finds them again."""

    def __init__(
        self,
        context: ContextLog,
        machines: Machines,
        models: ModelCalls,
        *,
        calls_url: str,
        secret: bytes,
        settings: Settings | None = None,
        clock: Clock = SYSTEM,
        workers: Machines | None = None,
        secrets: SecretCalls | None = None,
    ) -> None:
        """calls_url: where machines send their calls. secret: machines' tokens are made with it, so it outlives us.
        workers: the machines of the replay road. secrets: what programs may ask of hosts with."""
        settings = settings or Settings()
        super().__init__(context, Roads(machines, workers), models, settings.clean_up_s)
        self._clock = clock
        self._tokens = Tokens(calls_url, secret)
        self._settings = settings
        self._tasks = Tasks()
        self._driving: dict[str, asyncio.Task[None]] = {}  # by run
        self.tenure: Tenure | None = None  # put there before ``open``; None: no other server has this log open
        self._timers = Timers(self._deadline, clock)
        self.retention: Retention | None = None  # put there before ``open``; None: logs are kept until somebody says so
        self.courier: Courier | None = None  # put there before ``open``; None: nobody is told
        self.queues = Queues(context, clock, lambda at, name: self._timers.add(at, "", QUEUE + name))
        self.packs = Packs(context, clock)
        self.joint_budgets = JointBudgets(context, settings.budgets, clock)
        self._starts = Starts(context, self, self.packs, self.queues, self._tasks, settings, clock)
        self._returns = Returns(context, self, self._shelf, self.queues, self._tasks, models, clock)
        self._calls = Calls(models, self.deliver, self._returns.fork_itself, secrets, settings.budgets)
        self.schedules = Schedules(context, self, self.packs, clock, self._wind)
        self._children = Children(context, self, self._shelf.held, self._tasks.spawn, clock)
        self._strays = Strays(context, machines, clock, self._tasks.spawn)

    # -- life

    async def open(self) -> None:
        """Take up every run that has not ended (beside other servers: those that are ours); those that sleep are on the
        shelf."""
        children = []
        if self.courier is not None:
            await self.courier.open(self._tasks.spawn)
        if self.tenure is not None:
            await self.tenure.begin()
            self._tasks.spawn(self.tenure.run(), "heartbeat")
        else:
            for head in await self._context.heads(released=False):
                record = from_head(head)
                if record.is_bound:
                    children.append(head.run_id)
                if self._is_for_the_shelf(record):
                    self._put_up(head.run_id, record)
                else:
                    await self._adopt(self.take_up(head))
        await self.queues.open()
        await self.schedules.open()
        self._tasks.spawn(self._timers.run(), "timers")
        if self.retention is not None:
            self._tasks.spawn(self.retention.run(), "retention")
        for machines in self._roads.all:
            self._tasks.spawn(self._listen(machines), "machine-events")
        for run in self._runs.values():
            if run.id not in self._driving:
                self.drive(run)
        self._children.open(children)

    async def close(self) -> None:
        await self._tasks.close()
        await self._shelf.close()
        await asyncio.gather(*(run.doubt.close() for run in self._runs.values()))
        if self.tenure is not None:
            with suppress(PerdureError):  # the database is away: the others see that the lease does not move
                await self.tenure.end()

    # -- beside other servers (``tenure.Holder``)

    @property
    def held(self) -> int:
        return len(self._shelf)

    def has(self, run_id: str) -> bool:
        """Whether the run is this server's, and taken up."""
        return self._shelf.has(run_id)

    async def servers(self) -> list[dict[str, Any]]:
        """All on this database; []: there can be no other."""
        return await self.tenure.servers() if self.tenure is not None else []

    async def cancel(self, run_id: str, reason: str = "", *, clean_up_s: float | None = None) -> None:
        """See ``Desk.cancel``; also of a run at another server, as a parent's child may be."""
        try:
            await super().cancel(run_id, reason, clean_up_s=clean_up_s)
        except LeaseLost:
            if self.elsewhere is None:
                raise
            await self.elsewhere.post(run_id, "cancel", {"reason": reason, "clean_up_s": clean_up_s})

    async def deliver(self, ref: str, name: str, value: Any, signal_id: str) -> str:
        """See ``Desk.deliver``; also to a run at another server."""
        try:
            return await super().deliver(ref, name, value, signal_id)
        except LeaseLost:
            if self.elsewhere is None:
                raise
            run_id = await self.find(ref)
            await self.elsewhere.post(run_id, "signal", {"name": name, "value": value, "id": signal_id})
            return run_id

    async def take(self, run_id: str, of: str, *, is_ours: bool) -> None:
        if run_id in self._driving or run_id in self._shelf:
            return
        head = await self._context.head(run_id)
        record = from_head(head)
        if self.courier is not None:
            await self.courier.take(run_id, record)
        run = self._runs.get(run_id)  # it was not taken up as a whole
        if run is None and self._is_for_the_shelf(record):
            self._put_up(run_id, record)
        else:
            run = run or self.take_up(head)
            await (self._adopt(run) if is_ours or run.ended else self._take_over(run, of))
            self.drive(run)
        self._children.taken(run_id, record)

    async def look(self, servers: frozenset[str]) -> None:
        self.queues.look_elsewhere()
        if self.courier is not None:
            self.courier.look(servers)
        await self._children.look(self._shelf.has)
        self._strays.look(self._shelf.has, servers)

    async def let_go(self) -> None:
        self._strays.want()
        driving = list(self._driving.values())
        self._driving.clear()
        self._children.let_go()
        self.queues.let_go()
        self._timers.let_go()
        if self.courier is not None:
            await self.courier.let_go()
        runs = await self._shelf.let_go()
        for task in driving:
            task.cancel()
        await asyncio.gather(*driving, return_exceptions=True)
        for run in runs:
            await self._models.forget(run.id)

    async def _take_over(self, run: Run, of: str) -> None:
        """Its machine, if it has one, sends its calls to a server that is gone: it is as good as lost. What is asleep
        sleeps on: when it is to wake, it goes on from its newest snapshot that our node reaches (``restoring``)."""
        if run.state is RunState.QUEUED:
            await self._starts.queued(run)
        elif run.state is not RunState.SUSPENDED:
            await self._recover(run, f"server {of} was lost while it was {run.state}")

    def _is_for_the_shelf(self, record: Record) -> bool:
        return record.sleeps and self._settings.shelve_after_s is not None and not self._is_owed(record)

    def _is_owed(self, record: Record) -> bool:  # the newest snapshot, to the store: its driver brings it there
        return record.unshared(self._settings.snapshot_store, self._roads.of(record.request).node) is not None

    def take_up(self, head: Head) -> Run:
        """Have the run in memory; somebody is to drive it."""
        run = self._runs[head.run_id] = Run(head, self._context, self._on_wait, self._on_change, self._clock)
        self._on_change(run)
        return run

    def _put_up(self, run_id: str, record: Record) -> None:
        """On the shelf, as a former server had it."""
        self.queues.asleep(run_id, record.request)
        for wait in record.waits.open:
            self._on_wait(run_id, wait)
        until = limits.deadline(record)
        if until is not None:
            self._timers.add(until, run_id, LIMIT + run_id)
        self._shelf.put(run_id)

    async def _take_down(self, run_id: str) -> None:
        self.drive(self.take_up(await self._context.head(run_id)))

    async def _adopt(self, run: Run) -> None:
        """What a former server was doing with this run's machine when it ended."""
        run.look()
        if run.state is RunState.QUEUED:
            await self._starts.queued(run)
        elif run.state in (RunState.STARTING, RunState.RESUMING, RunState.RECOVERING):
            # A machine of this epoch may have begun: what it did is like what a lost one did.
            await self._recover(run, f"the server ended while it was {run.state}")

    async def _recover(self, run: Run, detail: str) -> None:
        async def act() -> None:
            epoch = run.record.epoch + 1
            lost = [*run.record.lost_epochs, run.record.epoch]
            why = {"cause": "server-lost", "detail": detail, "epoch": epoch}
            recoveries = run.record.recoveries + 1
            await run.write(to=RunState.RECOVERING, epoch=epoch, lost_epochs=lost, recoveries=recoveries, why=why)

        await run.atomically(act)

    def drive(self, run: Run, *, is_noted: bool = True) -> None:
        """Move the run along. is_noted: its first entry is written."""
        run.driven = True

        async def drive() -> None:
            if not is_noted:
                await self._starts.note(run)
            await self.queues.wait_for_turn(run)
            machines = self._roads.of(run.record.request)
            driver = Driver(run, machines, self._models, self.endpoint, self._settings)
            await driver.drive()
            run.driven = False
            self._driving.pop(run.id, None)
            if driver.shelved:
                if self._is_owed(run.record):
                    self._timers.add(self._clock.time() + LATER_S, run.id, PUSH + run.id)
                self._shelf.put(run.id)
            else:
                self._runs.pop(run.id, None)

        self._driving[run.id] = self._tasks.spawn(drive(), f"run-{run.id}")

    async def _listen(self, machines: Machines) -> None:
        async for event in machines.events():
            if event.kind == "node.connected" and machines is self._roads.snapshot:
                self._strays.want()
                if self.tenure is None:
                    self._tasks.spawn(self._strays.look_alone(self._shelf.has), "strays")
            for run in list(self._runs.values()):
                if event.kind == "node.connected" or event.sandbox_id == run.record.sandbox_id:
                    run.look()

    def _wind(self, at: float, schedule: str) -> None:
        self._timers.add(at, "", SCHEDULE + schedule, absolute=True)

    def _on_wait(self, run_id: str, wait: Wait) -> None:
        if wait.awaited:
            self._children.awaited(run_id, wait)
        if wait.until is not None:
            self._timers.add(wait.until, run_id, wait.id, absolute=wait.absolute)

    def _on_change(self, run: Run) -> None:
        self._children.changed(run)
        self.queues.changed(run)
        if self.courier is not None:
            self.courier.changed(run)
        self._forget_deadlines(run)
        until = limits.deadline(run.record)
        if until is not None and (run.limited_until is None or until < run.limited_until):
            run.limited_until = until
            self._timers.add(until, run.id, LIMIT + run.id)

    def _forget_deadlines(self, run: Run) -> None:
        """Of what is over. Waits are looked through once most deadlines are: a run may have had many."""
        waits = run.record.waits.open
        if run.ended:
            self._timers.forget(run.id)
            run.limited_until = None
        elif self._timers.of(run.id) > 2 * len(waits) + DEADLINES_MAX:
            self._timers.retain(run.id, {LIMIT + run.id, *(wait.id for wait in waits)})

    async def _deadline(self, run_id: str, wait_id: str, until: float) -> None:
        for prefix, turn in ((SCHEDULE, self.schedules.turn), (QUEUE, self.queues.due)):
            if wait_id.startswith(prefix):
                await turn(wait_id.removeprefix(prefix))
                return
        async with self._shelf.held(run_id) as run:
            if run is not None and wait_id == LIMIT + run_id:
                await self._limit(run, until)
            elif run is not None and not wait_id.startswith(PUSH):  # its driver, which is up, brings it there
                await run.timeout(wait_id, until)

    async def _limit(self, run: Run, until: float) -> None:
        """A time limit of the run has passed, or would have, had it gone on with its machine."""
        if run.ended:
            return
        now = max(self._clock.time(), until)
        ending, error = run.record.ending, limits.passed(run.record, now)
        if ending is not None and ending.until <= now:
            await ends.end(run, RunState(ending.to), ending.error, 0)
        elif ending is None and error is not None:
            await self._end(run, RunState.FAILED, error, self._settings.clean_up_s)
        run.limited_until = None
        self._on_change(run)

    # -- starting

    async def start(self, request: StartRequest) -> tuple[RunInfo, bool]:
        """Start a run; with a ``key`` that was used before: that run, and False. Conflict: it is of something else."""
        run_id, is_new = await self._starts.start(request)
        return await self.info(run_id), is_new

    async def adopt(self, head: Head) -> None:
        """See ``Starts.adopt``."""
        await self._starts.adopt(head)

    async def expect(self, run_id: str, record: Record) -> None:
        """A run is about to be made."""
        if self.courier is not None:
            await self.courier.expect(run_id, record)

    async def forget(self, run_id: str) -> None:
        """See ``expect``: it was not made."""
        if self.courier is not None:
            await self.courier.forget(run_id)

    # -- back in time

    async def fork(self, run_id: str, *, at: int | None = None, count: int = 1, name: str = "") -> list[RunInfo]:
        """New runs that go on from an entry of this one (None: the newest), each by itself. InvalidValue: no such
        entry, or nothing goes on from it."""
        return (await self.fork_once(run_id, at=at, count=count, name=name))[0]

    async def fork_once(
        self, run_id: str, *, at: int | None = None, count: int = 1, name: str = "", key: str | None = None
    ) -> tuple[list[RunInfo], bool]:
        """The same; with a ``key`` that this run was forked with before: those runs, and False. Conflict: other ones
        were asked for with it."""
        wanted = Wanted(at=at, count=count, name=name)
        made, is_new = await self._tasks.to_its_end(self._returns.fork(run_id, wanted, key))
        return [await self.info(fork_id) for fork_id in made], is_new

    async def rewind(self, run_id: str, to: int, *, key: str | None = None) -> RunInfo:
        """Take the run back to an entry of its current branch, also after its end: it goes on from there on a new
        branch, and the old tail stays readable. With a ``key`` that was used before: nothing. InvalidValue, Conflict:
        see ``travel``."""
        await self._tasks.to_its_end(self._returns.rewind(run_id, to, key))
        return await self.info(run_id)

    # -- what machines ask

    def endpoint(self, run_id: str, epoch: int) -> CallsEndpoint:
        """See ``Tokens.endpoint``."""
        return self._tokens.endpoint(run_id, epoch)

    async def answer(self, call: Call, token: str) -> Answer:
        """See ``Calls.answer``. StaleEpoch too: a wrong token, a run that has ended."""
        self._tokens.check(call, token)
        async with self._shelf.held(call.run_id) as run:
            if run is None and self.tenure is not None and not self.tenure.is_held:
                raise LeaseLost("this server is beginning anew", hint="Ask again in a moment.")
            if run is None:
                raise StaleEpoch(f"run {call.run_id} has ended or never was", hint="This machine is to end.")
            answer = await self._calls.answer(run, call)
            if (leases := self._context.leases) is not None and not leases.is_sure:
                # It was stopped meanwhile: nobody acts on what it knew. What runs answer with can be closed.
                await answer.body.aclose()  # type: ignore[attr-defined]
                raise LeaseLost("this server was stopped, or cut off", hint="Ask again in a moment.")
            return answer
