"""Moves the machine of one run along.

One task per run looks at the state, does on the machine what it asks for, and writes the next transition only if the
run is still in the state and epoch it began with. So an approval, a timer, a crash and a cancel may come at any moment
of a suspend: each writes what happened, and the driver sees it next.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from perdure.context.log import NewEntry
from perdure.errors import MachineFailed, NotFound, PerdureError, SnapshotInvalid, Unavailable
from perdure.model import CallsEndpoint, RunState, SandboxInfo, SandboxState
from perdure.runs import ends, output, travel
from perdure.runs.budgets import Budgets
from perdure.runs.captures import Captures
from perdure.runs.policy import Policy
from perdure.runs.ports import Machines, ModelCalls
from perdure.runs.pushes import Pushes
from perdure.runs.record import Kept, Record
from perdure.runs.replay import check_versions
from perdure.runs.restoring import Passed, Restoring
from perdure.runs.run import WARM, Run
from perdure.runs.tasks import unless

log = logging.getLogger(__name__)

PROGRESS = frozenset({"model.committed", "step.result", "wait.started", "emit", "fork", "value", "message", "note"})
LOOKED_AT = 500  # entries: what is new comes after what is answered again


@dataclass(frozen=True)
class Settings:
    """Times in seconds."""

    idle_grace_s: float = 1.0  # these five: of runs that say nothing else (runs.policy)
    think_grace_s: float = 60.0
    checkpoint_turns: int = 0
    checkpoint_s: float = 0.0
    snapshots_kept: int = 8
    suspend_retry_s: float = 30.0  # after a refused suspend or checkpoint
    backoff_s: float = 0.5  # before the second recovery in a row, doubled for each more
    backoff_max_s: float = 30.0
    clean_up_s: float = 30.0  # for a program that is told that its run is to end
    shelve_after_s: float | None = 5.0  # asleep for so long: only its deadline is kept in memory; None: never
    snapshot_store: str = ""  # the URL of one that all nodes reach: what was captured is brought there
    budgets: Budgets = field(default_factory=Budgets)  # of runs that say nothing else
    failures_max: int = 5  # recoveries in a row for one cause, without anything new from the guest in between

    @property
    def policy(self) -> Policy:
        """Of runs that say nothing else."""
        return Policy(**{name: getattr(self, name) for name in Policy.__struct_fields__})


class Driver:
    """``drive`` returns when the run has ended and its machine is removed, or sleeps and nobody has it in hand."""

    def __init__(
        self,
        run: Run,
        machines: Machines,
        models: ModelCalls,
        endpoint: Callable[[str, int], CallsEndpoint],
        settings: Settings,
    ) -> None:
        """endpoint: where the machine of (run id, epoch) sends its calls."""
        self.run = run
        self._machines = machines
        self._models = models
        self._endpoint = endpoint
        self._settings = settings
        policy = run.record.request.policy.over(settings.policy)
        if run.record.request.is_replay:  # there is nothing to capture
            policy = msgspec.structs.replace(policy, checkpoint_turns=0, checkpoint_s=0.0)
        self._pushes = Pushes(run, machines, settings.snapshot_store)
        self._captures = Captures(run, machines, models, policy, settings.suspend_retry_s, self._pushes)
        self._restoring = Restoring(run, machines)
        self._stopped_in = 0  # the epoch whose program was stopped
        self.shelved = False
        self._away = 0  # times in a row that the node was not there

    async def drive(self) -> None:
        """Move the run along until it has ended and its machine is removed, or only time can wake it (``shelved``)."""
        acts: dict[RunState, Callable[[], Awaitable[None]]] = {
            RunState.QUEUED: self._queued,
            RunState.STARTING: self._starting,
            RunState.RUNNING: self._warm,
            RunState.WAITING: self._warm,
            RunState.SUSPENDING: self._captures.suspend,
            RunState.SUSPENDED: self._suspended,
            RunState.RESUMING: self._resuming,
            RunState.RECOVERING: self._recovering,
        }
        self._pushes.begin()  # what a former server had not brought there
        try:
            await self._drive(acts)
        finally:
            self._pushes.close()

    async def _drive(self, acts: dict[RunState, Callable[[], Awaitable[None]]]) -> None:
        pause_s = self._settings.backoff_s
        while not self.run.record.released and not self.shelved:
            try:
                await (self._release() if self.run.ended else acts[self.run.state]())
                pause_s = self._settings.backoff_s
            except Exception as error:  # whatever it is: a run is never left without a driver
                expected = isinstance(error, PerdureError | OSError)
                say = "run %s, %s: %s (again in %.1f s)"
                log.warning(say, self.run.id, self.run.state, error, pause_s, exc_info=None if expected else error)
                await self.run.clock.sleep_until(self.run.clock.monotonic() + pause_s)
                pause_s = min(pause_s * 2, self._settings.backoff_max_s)

    async def _go(self, seen: Record, to: RunState, *new: NewEntry, **changes: Any) -> bool:
        """Take an arrow if the run is still in the state and epoch that the driver acted on."""

        async def act() -> bool:
            if self.run.state is not seen.state or self.run.record.epoch != seen.epoch:
                return False
            await self.run.write(*new, to=to, **changes)
            if to is RunState.RUNNING:
                self.run.look()  # what happened to the sandbox before it was known as ours told us nothing
            return True

        return await self.run.atomically(act)

    async def _fail(self, seen: Record, error: dict[str, Any], kind: str = "") -> None:
        # In a new epoch: the fence. Whatever is left of its machine can do nothing any more.
        await self._conclude(seen, RunState.FAILED, epoch=seen.epoch + 1, error=error, kind=kind)

    async def _conclude(self, seen: Record, to: RunState, **how: Any) -> None:
        async def act() -> None:
            if self.run.state is seen.state and self.run.record.epoch == seen.epoch:
                await ends.conclude(self.run, to, **how)

        await self.run.atomically(act)

    async def _queued(self) -> None:
        epoch = self.run.record.epoch + 1
        await self._go(self.run.record, RunState.STARTING, epoch=epoch, why={"epoch": epoch})

    async def _starting(self) -> None:
        seen = self.run.record
        try:
            if seen.request.is_replay:
                check_versions(seen)
            starting = self._restoring.begun(self._endpoint(self.run.id, seen.epoch))
            # a worker may have to wait long for others to end; a node's start goes on, whoever asked for it
            is_replay = seen.request.is_replay
            begun = await (unless(self.run, lambda: self._is_other(seen), starting) if is_replay else starting)
            if begun is None:
                return
            sandbox_id, snapshot, passed = begun
        except (MachineFailed, Unavailable) as error:
            await self._lost(seen, "start-failed", error.message, counts=not isinstance(error, Unavailable))
        except PerdureError as error:
            await self._fail(seen, error.to_json())
        else:
            why: dict[str, Any] = {"sandbox": sandbox_id, "epoch": seen.epoch}
            if snapshot is not None:
                why |= {"from": snapshot.digest, "seq": snapshot.seq}
            why |= self._restoring.whereabouts(passed)
            if not await self._go(seen, RunState.RUNNING, why=why, **self._restoring.moved(sandbox_id, snapshot)):
                log.info("run %s: its machine is not wanted any more", self.run.id)

    async def _warm(self) -> None:
        run, captures, seen = self.run, self._captures, self.run.record
        if await self._stopped(seen):
            return
        if run.look_wanted:
            await self._look_if_asked(seen)
            return
        if captures.checkpoint_is_due():
            await captures.checkpoint()
            return
        idle, quiet_since, suspend_s = run.idle(), run.quiet_since, captures.suspend_in_s()
        if suspend_s is not None and suspend_s <= 0:
            await captures.begin_suspend(seen)
            return
        pauses = [pause for pause in (suspend_s, captures.checkpoint_in_s()) if pause]

        def over() -> bool:
            is_other = run.record is not seen or run.idle() is not idle or run.quiet_since != quiet_since
            return run.look_wanted or is_other or captures.checkpoint_is_due()

        await run.until(over, min(pauses, default=None))

    async def _stopped(self, seen: Record) -> bool:
        """A program that knows nothing of runs hears that it is to end by its stop signal; once an epoch."""
        if seen.ending is None or not seen.request.command or self._stopped_in == seen.epoch:
            return False
        self._stopped_in = seen.epoch
        await self._machines.stop(seen.sandbox_id, max(0.0, seen.ending.until - self.run.clock.time()))
        self.run.look_wanted = True
        return True

    async def _rests(self) -> bool:
        """Whether it is to be put on the shelf. From this answer on nothing may be awaited until it is there."""
        run, after_s = self.run, self._settings.shelve_after_s
        if after_s is None or run.record.thinking:  # a model's first byte wakes it
            return False

        def awake() -> bool:
            return run.record.wake or run.state is not RunState.SUSPENDED

        if not await run.until(awake, after_s):
            await run.until(lambda: awake() or not run.users)
        self.shelved = not awake()
        return self.shelved

    async def _suspended(self) -> None:
        if await self._rests():
            return
        await self._captures.sleep()
        if self.run.state is RunState.SUSPENDED:
            seen, epoch = self.run.record, self.run.record.epoch + 1
            changes = {"wake": False, "thinking": [], "unheard": seen.thinking}
            await self._go(seen, RunState.RESUMING, epoch=epoch, why={"epoch": epoch}, **changes)

    async def _resuming(self) -> None:
        seen = self.run.record
        if seen.request.is_replay:
            await self._starting()
            return
        if seen.snapshot is None or not seen.restorable:
            await self._lost(seen, "no-snapshot", "the run has no snapshot")
            return
        newest, why = seen.restorable[-1], {"epoch": seen.epoch, "snapshot": seen.snapshot.digest}
        try:
            sandbox_id = await self._restoring.restored(newest, self._endpoint(self.run.id, seen.epoch))
        except Passed as error:
            await self._lost(seen, "snapshot-elsewhere", str(error), counts=False)
        except PerdureError as error:
            # Whether it was restored or not: that machine is not ours any more, a new epoch is.
            await self._lost(seen, "resume-failed", error.message, counts=not isinstance(error, Unavailable))
        else:
            moved = self._restoring.moved(sandbox_id, newest)
            why |= self._restoring.whereabouts([], newest, moved)
            await self._go(seen, RunState.RUNNING, why=why, **moved)

    # -- loss and recovery

    async def _look_if_asked(self, seen: Record) -> None:
        """Inspect the sandbox when something may have happened to it."""
        if not self.run.look_wanted or self.run.state not in WARM or seen.epoch != self.run.record.epoch:
            return
        seen, self.run.look_wanted = self.run.record, False
        try:
            await self._look(seen)
        except PerdureError:
            self.run.look_wanted = True
            raise

    async def _look(self, seen: Record) -> None:
        is_gone = await self._gone(seen)
        if is_gone and self.run.state in WARM and self.run.record.epoch == seen.epoch:
            self.run.look_wanted = True  # a wait began or ended meanwhile: from that state again

    async def _gone(self, seen: Record) -> bool:
        """Whether the machine does not run any more; what that means for the run is done."""
        try:
            info = await self._machines.inspect(seen.sandbox_id)
        except NotFound:
            await self._lost(seen, "sandbox-gone", f"sandbox {seen.sandbox_id} was removed")
            return True
        if info.state is SandboxState.EXITED:
            if info.cause == "exit" or (seen.ending and seen.request.command):
                await self._exited(seen, info)
            else:
                await self._lost(seen, info.cause or "exited", info.detail)
        elif info.state is SandboxState.SUSPENDED:
            snapshot = await self._captures.captured(seen.sandbox_id, seen.epoch)
            if snapshot is None:
                await self._lost(seen, "suspended", "somebody else suspended its sandbox", counts=False)
            # What it waited for may be over since: it is woken, and sleeps again if it has nothing else to do.
            elif await self._go(seen, RunState.SUSPENDING, wake=True, why={"found": "suspended"}):
                await self._captures.accept(snapshot)
        return info.state in (SandboxState.EXITED, SandboxState.SUSPENDED)

    async def _exited(self, seen: Record, info: SandboxInfo) -> None:
        """The program ended by itself."""
        said = await self._machines.output(seen.sandbox_id, output.KEPT_BYTES)
        end = {"exit_status": info.exit_status, "output": said.decode("utf-8", "replace")}
        if seen.request.command and info.exit_status == 0:
            await self._conclude(seen, RunState.COMPLETED, epoch=seen.epoch, result=end)
            return
        what = "the program" if seen.request.command else f"the agent {seen.request.agent} gave no result: its process"
        message = f"{what} ended with exit status {info.exit_status}"
        error = {"code": "program-failed", "message": message, "hint": "Its last output is in the details."}
        await self._fail(seen, {**error, "details": end}, "program-failed")

    async def _lost(self, seen: Record, cause: str, detail: str, *, counts: bool = True) -> None:
        """The machine of this epoch is gone: recover in a new one, or give up.

        counts: False while the node is away, which says nothing about the run: only the pauses grow with such losses.
        """
        again = seen.failure == cause and not await self._progressed(seen)
        failures = (seen.failures if again else 0) + counts
        self._away = 0 if counts else self._away + 1
        if failures > self._settings.failures_max:
            message = f"gave up after {failures} failures in a row: {cause}" + (f" ({detail})" if detail else "")
            where = "server's log (run/perdured.log" if seen.request.is_replay else "node's log (run/fcrund.log"
            hint = f"The {where} in the state folder) says more."
            error = {"code": "machine-failed", "message": message, "hint": hint, "details": {"cause": cause}}
            await self._fail(seen, error, "machine-failed")
            return
        epoch = seen.epoch + 1
        await self._go(
            seen,
            RunState.RECOVERING,
            epoch=epoch,
            failure=cause,
            failures=failures,
            recoveries=seen.recoveries + 1,
            lost_epochs=[*seen.lost_epochs, seen.epoch],
            why={"cause": cause, "detail": detail, "epoch": epoch, "failures": failures},
        )

    async def _progressed(self, seen: Record) -> bool:
        """Whether the guest wrote something new in this epoch; also to a server that is gone as well."""
        if self.run.progressed:
            return True
        after = max(0, (await self.run.context.head(self.run.id)).seq - LOOKED_AT)
        newest = await self.run.context.read(self.run.id, after=after, expand=False)
        return any(entry.epoch == seen.epoch and entry.kind in PROGRESS for entry in newest)

    async def _recovering(self) -> None:
        seen = self.run.record
        if (pause_s := seen.retry_at - self.run.clock.time()) > 0:
            await self._machines.remove(self.run.id)  # it is of no use, and the pause may be long
            if await self.run.until(lambda: self._is_other(seen), pause_s):
                return
        if (tries := max(seen.failures, self._away)) > 1:
            pause_s = min(self._settings.backoff_s * 2 ** min(tries - 2, 32), self._settings.backoff_max_s)
            if await self.run.until(lambda: self._is_other(seen), pause_s):
                return
        seen = self.run.record
        calls, passed = self._endpoint(self.run.id, seen.epoch), list[dict[str, Any]]()
        for one in await self._newest_first(seen):
            try:
                sandbox_id = await self._restoring.restored(one, calls)
            except Passed as error:
                passed.append(self._restoring.told(one, str(error)))
                continue
            except (NotFound, SnapshotInvalid) as error:
                await self._without(one, error)
            except PerdureError as error:
                await self._lost(seen, "restore-failed", error.message, counts=not isinstance(error, Unavailable))
            else:
                moved = self._restoring.moved(sandbox_id, one)
                why = {"from": one.digest, "seq": one.seq, "epoch": seen.epoch}
                why |= self._restoring.whereabouts(passed, one, moved)
                await self._go(seen, RunState.RUNNING, wake=False, why=why, **moved)
            return
        why = {"from": "start", "epoch": seen.epoch, **self._restoring.whereabouts(passed)}
        await self._go(seen, RunState.STARTING, why=why)

    def _is_other(self, seen: Record) -> bool:
        """It has ended, or was rewound: then it recovers, too, and in another epoch."""
        return self.run.state is not seen.state or self.run.record.epoch != seen.epoch

    async def _without(self, damaged: Kept, error: PerdureError) -> None:
        """It is gone or damaged: the one before it is next, and at last the log alone, which is enough."""

        async def act() -> None:
            if self.run.state is RunState.RECOVERING:
                left = [one for one in self.run.record.restorable if one != damaged]
                told = {"snapshot_lost": damaged.digest, "seq": damaged.seq, "error": error.to_json()}
                await self.run.write(NewEntry(kind="note", payload=told), snapshot=None, snapshots=left)

        await self.run.atomically(act)

    async def _newest_first(self, seen: Record) -> list[Kept]:
        """The snapshots whose position is on the way to the current branch's tip."""
        way = await self.run.context.lineage(self.run.id, self.run.branch)
        return [one for one in reversed(seen.restorable) if travel.is_on(way, self.run.id, one)]

    async def _release(self) -> None:
        await self._models.forget(self.run.id)
        self._captures.close()
        seen, kept = self.run.record, dict[str, Any]()
        if seen.sandbox_id and not seen.output:
            with contextlib.suppress(NotFound):
                kept = await output.tail(self._machines, seen.sandbox_id)

        async def keep() -> None:
            if self.run.ended:
                await self.run.write(**kept)

        await self.run.atomically(keep)  # before what it is a copy of is removed
        if not self.run.ended:
            return  # it was rewound
        await self._machines.remove(self.run.id)

        async def act() -> None:
            if self.run.ended:
                await self.run.write(released=True)

        await self.run.atomically(act)
