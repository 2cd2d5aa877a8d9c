"""Captures the machine of one run: to let it sleep, and while it goes on (a checkpoint).

While a machine is captured nothing is answered to it, so that a snapshot is of exactly one position of the log. A step
that was begun, and a model's answer on its way, put a capture off.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Any

import msgspec

from perdure.context.log import NewEntry
from perdure.errors import Conflict, NotFound, PerdureError
from perdure.model import LogPosition, RunState, SandboxState, SnapshotInfo
from perdure.runs.forking import noted
from perdure.runs.policy import Policy
from perdure.runs.ports import Machines, ModelCalls
from perdure.runs.pushes import Pushes
from perdure.runs.record import Kept, Record
from perdure.runs.run import WARM, Run
from perdure.runs.wishes import Wish

log = logging.getLogger(__name__)


class Captures:
    """``policy``: the run's, where it says nothing the server's. ``retry_s``: after a capture that failed."""

    def __init__(
        self, run: Run, machines: Machines, models: ModelCalls, policy: Policy, retry_s: float, pushes: Pushes
    ) -> None:
        self.run = run
        self._machines = machines
        self._models = models
        self._policy = policy
        self._retry_s = retry_s
        self._pushes = pushes
        self._not_before = 0.0  # monotonic
        self._thoughts: dict[str, Any] = {}  # the model calls that the machine was suspended in
        self._releasing: asyncio.Task[None] | None = None
        self._release_wanted = False
        self._loose: list[tuple[str, str]] = []  # (sandbox, digest): the record does not name them any more

    # -- when

    def suspend_in_s(self) -> float | None:
        """Seconds until the machine may sleep, as things are; None while it is not idle."""
        if not self.run.idle():
            return None
        grace_s = self._policy.think_grace_s if self.run.activity.thinking else self._policy.idle_grace_s
        return max(self.run.quiet_since + (grace_s or 0.0), self._not_before) - self.run.clock.monotonic()

    def checkpoint_in_s(self) -> float | None:
        """Seconds until a checkpoint is due by the time that the program ran; None: never, as things are."""
        every_s = self._policy.checkpoint_s
        if not every_s or self.run.state is not RunState.RUNNING:
            return None
        return max(every_s - self.run.activity.ran_s, self._not_before - self.run.clock.monotonic(), 0.0)

    def checkpoint_is_due(self) -> bool:
        """Somebody wishes for one, or the policy does, and nothing puts it off."""
        activity, policy = self.run.activity, self._policy
        if not self._is_between() or self.run.state not in WARM:
            return False
        if self.run.wishes:
            return True
        if self.run.clock.monotonic() < self._not_before:
            return False
        by_turns = bool(policy.checkpoint_turns) and activity.turns >= (policy.checkpoint_turns or 0)
        return by_turns or self.checkpoint_in_s() == 0.0

    def _is_between(self) -> bool:
        activity = self.run.activity
        return not (self.run.record.steps or activity.speaking or activity.pausing)

    # -- checkpoints

    async def checkpoint(self) -> None:
        """Capture the machine; it goes on. What fails is written down, and the run goes on all the same."""
        run, wishes = self.run, self.run.wishes
        run.wishes = []
        try:
            position = await run.atomically(self._hold)
            if position is None:  # something began just now
                run.wishes = wishes + run.wishes
                return
            snapshot = await self._machines.checkpoint(run.record.sandbox_id, position)
            await run.atomically(lambda: self._checkpointed(snapshot, position, wishes))
        except PerdureError as error:
            self._not_before = self.run.clock.monotonic() + self._retry_s
            run.look_wanted = True  # if the machine is in fact lost, the look finds that out
            for wish in wishes:
                wish.error = error
            await run.atomically(partial(self._not_checkpointed, error, wishes))
        except BaseException:
            run.wishes = [wish for wish in wishes if not wish.is_over] + run.wishes  # it is tried again
            raise
        finally:
            run.capturing = False
            run.notify()
        self._captured()

    async def _hold(self) -> LogPosition | None:
        if not self._is_between() or self.run.state not in WARM:
            return None
        self.run.capturing = True
        return await self.position()

    async def position(self) -> LogPosition:
        tip = await self.run.context.head(self.run.id)
        return LogPosition(run_id=self.run.id, branch=tip.branch, seq=tip.seq, epoch=self.run.record.epoch)

    async def _checkpointed(self, snapshot: SnapshotInfo, position: LogPosition, wishes: list[Wish]) -> None:
        run = self.run
        if run.record.epoch != position.epoch or run.ended:
            run.wishes = wishes + run.wishes  # the machine was lost meanwhile; the next one is captured
            return
        payload = {"snapshot": msgspec.to_builtins(snapshot), "checkpoint": True}
        told = {"checkpoint": snapshot.digest, "seq": position.seq}
        entries = [NewEntry(kind="snapshot", payload=payload), *_notes(wishes, told, position)]
        await run.write(*entries, **self._with(snapshot, keep=any(wish.keep for wish in wishes)))
        run.activity.captured()
        for wish in wishes:
            wish.snapshot = snapshot

    async def _not_checkpointed(self, error: PerdureError, wishes: list[Wish]) -> None:
        if not self.run.ended:
            told = {"checkpoint_failed": error.to_json()}
            await self.run.write(*(_notes(wishes, told) or [NewEntry(kind="note", payload=told)]))

    def _with(self, snapshot: SnapshotInfo, *, keep: bool = False) -> dict[str, Any]:
        """The record's fields with one more snapshot."""
        record, at = self.run.record, snapshot.position
        kept = Kept(
            digest=snapshot.digest,
            branch=at.branch if at else self.run.branch,
            seq=at.seq if at else 0,
            at=snapshot.created,
            stored_bytes=snapshot.stored_bytes,
            keep=keep,
            node=record.node_id,
            sandbox=record.sandbox_id,
        )
        stored = record.stored_bytes + snapshot.stored_bytes
        return {"snapshot": snapshot, "snapshots": [*record.restorable, kept], "stored_bytes": stored}

    # -- what is not needed any more, and what is needed elsewhere

    def _captured(self) -> None:
        self._pushes.begin()
        self._release()

    def _release(self) -> None:
        """Give up the oldest snapshots beyond what the policy keeps; in the background, the run goes on."""
        if not self._policy.snapshots_kept:
            return
        self._release_wanted = True
        if self._releasing is None or self._releasing.done():
            self._releasing = asyncio.create_task(self._give_up(self._policy.snapshots_kept), name="release")
        self.run.notify()

    async def _give_up(self, count: int) -> None:
        """To the end: what is being read just now, or moved, is tried again."""

        async def forget() -> None:
            loose = [one for one in self.run.record.snapshots if not one.keep]
            given_up = loose[:-count]
            if given_up and not self.run.ended:
                left = [one for one in self.run.record.snapshots if one not in given_up]
                await self.run.write(snapshots=left)  # first: what is named here is there
                sandbox_id = self.run.record.sandbox_id
                # Others are in a store: what no tag leads to is the store's.
                self._loose += [(sandbox_id, one.digest) for one in given_up if one.sandbox in ("", sandbox_id)]

        try:
            while self._release_wanted or self._loose:
                if self._release_wanted:
                    self._release_wanted = False
                    await self.run.atomically(forget)
                self._loose = [one for one in self._loose if not await self._is_forgotten(*one)]
                self.run.notify()
                if self._loose:  # not sooner than this, but for another capture
                    await self.run.until(lambda: self._release_wanted, self._retry_s)
        except PerdureError as error:  # it costs space until the next capture, or the run's end, and nothing else
            log.info("run %s: a snapshot is not given up: %s", self.run.id, error)

    async def _is_forgotten(self, sandbox_id: str, digest: str) -> bool:
        """False: it is being read just now, or moved, or the node is away."""
        try:
            await self._machines.forget(sandbox_id, digest)
        except NotFound:
            pass
        except PerdureError as error:
            log.info("run %s: snapshot %s is not given up yet: %s", self.run.id, digest, error)
            return False
        return True

    def close(self) -> None:
        """The run has ended: nothing is captured, or given up, any more."""
        self._pushes.close()
        if self._releasing is not None:
            self._releasing.cancel()
        for wish in self.run.wishes:
            wish.error = Conflict(f"run {self.run.id} has ended: it is {self.run.state}", state=self.run.state)
        self.run.wishes = []
        self.run.notify()

    # -- suspends

    async def begin_suspend(self, seen: Record) -> None:
        """If the run is still as it was seen, and idle."""

        async def act() -> None:
            if self.run.record is seen and self.run.idle():
                self._thoughts = dict(self.run.activity.thinking)
                why = {"waits": [wait.id for wait in seen.waits.open]}
                why |= {"thinking": sorted(self._thoughts)} if self._thoughts else {}
                await self.run.write(to=RunState.SUSPENDING, wake=False, thinking=sorted(self._thoughts), why=why)

        await self.run.atomically(act)

    async def suspend(self) -> None:
        """The machine is captured and gone; or nothing was lost, and it stays warm."""
        seen = self.run.record
        position = await self.position()
        try:
            snapshot = await self.captured(seen.sandbox_id, seen.epoch)
            if snapshot is None:
                snapshot = await self._suspended(seen, position)
        except PerdureError as error:
            # Refused or failed: it stays warm. If it is in fact lost, the look finds that out.
            self.run.look_wanted = True
            self._not_before = self.run.clock.monotonic() + self._retry_s
            why = {"suspend_failed": error.to_json()}

            async def back() -> None:
                if self.run.state is RunState.SUSPENDING:
                    to = RunState.WAITING if self.run.record.waits.open else RunState.RUNNING
                    await self.run.write(to=to, why=why, wake=False)

            await self.run.atomically(back)
            return
        await self.accept(snapshot)
        self._captured()

    async def _suspended(self, seen: Record, position: LogPosition) -> SnapshotInfo | None:
        try:
            return await self._machines.suspend(seen.sandbox_id, position)
        except PerdureError:
            # Its answer may be lost and not the suspend, or an older request was still under way and is done now.
            snapshot = await self.captured(seen.sandbox_id, seen.epoch)
            if snapshot is None:
                raise
            return snapshot

    async def accept(self, snapshot: SnapshotInfo | None) -> None:
        """The machine was captured and is gone; without a snapshot where the log has all there is of it."""

        async def act() -> None:
            if self.run.state is RunState.SUSPENDING:
                counted: dict[str, Any] = {
                    "suspends": self.run.record.suspends + 1,
                    "suspended_at": self.run.clock.time(),
                }
                if snapshot is None:
                    await self.run.write(to=RunState.SUSPENDED, why={"stored_bytes": 0}, **counted)
                else:
                    entry = NewEntry(kind="snapshot", payload={"snapshot": msgspec.to_builtins(snapshot)})
                    why = {"stored_bytes": snapshot.stored_bytes}
                    await self.run.write(entry, to=RunState.SUSPENDED, why=why, **counted, **self._with(snapshot))
                self.run.activity.captured()

        await self.run.atomically(act)

    async def captured(self, sandbox_id: str, epoch: int) -> SnapshotInfo | None:
        """The snapshot of a suspend in this epoch that the node finished while nobody listened."""
        try:
            info = await self._machines.inspect(sandbox_id)
        except NotFound:
            return None
        at = info.snapshot.position if info.snapshot else None
        if info.state is SandboxState.SUSPENDED and at and (at.run_id, at.epoch) == (self.run.id, epoch):
            return info.snapshot
        return None

    async def sleep(self) -> None:
        """Until a suspended machine is wanted: what it waits for has come, or a model has begun to answer."""
        lost = [key for key in self.run.record.thinking if key not in self._thoughts]
        if lost:  # of a server that has ended, with the connection to the provider: the machine asks again
            await self._wake()
        hearing = [asyncio.create_task(self._hear(*thought), name="thought") for thought in self._thoughts.values()]
        try:
            await self.run.until(lambda: self.run.record.wake or self.run.state is not RunState.SUSPENDED)
        finally:
            for task in hearing:
                task.cancel()
            await asyncio.gather(*hearing, return_exceptions=True)

    async def _hear(self, call: Any, branch: int) -> None:
        """Wake the machine at the next byte of a model's answer; also where there will be none."""
        try:
            answer = await self._models.answer(call, branch)
            async for _ in answer.body:
                break
        except Exception as error:  # whatever it is: the machine asks again, and is told
            log.info("run %s: call %s while it sleeps: %r", self.run.id, call.key, error)
        await self._wake()

    async def _wake(self) -> None:
        async def act() -> None:
            if self.run.state is RunState.SUSPENDED and not self.run.record.wake:
                await self.run.write(wake=True)

        await self.run.atomically(act)


def _notes(wishes: list[Wish], told: dict[str, Any], position: LogPosition | None = None) -> list[NewEntry]:
    """What the program's own wishes are answered with, also after a restore. position: of the snapshot, if there is
    one: forks leave there."""
    return [
        noted(wish, position.run_id, position.branch, position.seq)
        if position is not None and wish.forks
        else NewEntry(kind="note", key=wish.key, payload={**told, "request": wish.request})
        for wish in wishes
        if wish.key
    ]
