"""One sandbox, as the node's API uses it. One use case at a time moves it."""

from __future__ import annotations

import asyncio
import posixpath
import signal
import stat
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from perdure.errors import Conflict, GuestFailed, InvalidValue, MachineFailed, NotFound, PerdureError
from perdure.execution.guest.session import GuestFiles, GuestSession, Process
from perdure.execution.images import entries
from perdure.execution.images.entries import Entry
from perdure.execution.machine.remote import Launcher
from perdure.execution.sandboxes import (
    adopting,
    archive,
    checkpointing,
    compacting,
    forgetting,
    mounts,
    networking,
    pausing,
    resuming,
    starting,
    suspending,
    syncing,
    waking,
    workload,
)
from perdure.execution.sandboxes.life import Life
from perdure.execution.sandboxes.record import Folder, Record
from perdure.execution.sandboxes.rooms import Rooms
from perdure.execution.snapshots.restore import RestoreFiles
from perdure.host import headroom
from perdure.host.progress import Progress, silent
from perdure.model import CallsEndpoint, ExecSpec, LogPosition, SandboxInfo, SnapshotInfo, WakeReason
from perdure.model import SandboxState as S

KILL_TIMEOUT_S = STOP_TIMEOUT_S = 10.0
QUIET_AT_ONCE = 2


class Sandbox(Life):
    """Every use case raises IllegalTransition where the table of ``states`` has no arrow for it."""

    def __init__(self, rooms: Rooms, folder: Folder, record: Record) -> None:
        super().__init__(rooms, folder, record)
        self.quiet = asyncio.Semaphore(QUIET_AT_ONCE)  # machines that read its files (``reading``)

    async def start(self, progress: Progress = silent, *, restarts: int = 0) -> SandboxInfo:
        """restarts: how often in a row its policy has started it, with this one."""
        async with self.moving:
            self.check("start")
            before = self.record
            self.record = msgspec.structs.replace(before, restarts=restarts)  # written down with the start itself
            try:
                await starting.start(self, progress)
            except BaseException:
                if self.record.finished == before.finished:  # refused: nothing of it was begun, so it counts for none
                    self.record = msgspec.structs.replace(self.record, restarts=before.restarts)
                raise
            return self.info()

    async def pause(self) -> SandboxInfo:
        """Let none of its processors run, until ``unpause``; it keeps its memory, and what is connected to it."""
        async with self.moving:
            await pausing.pause(self)
            return self.info()

    async def unpause(self) -> SandboxInfo:
        async with self.moving:
            await pausing.unpause(self)
            return self.info()

    async def suspend(self, position: LogPosition | None = None) -> SnapshotInfo:
        """Also of a paused one; one that cannot be suspended goes on as it was."""
        async with self.moving:
            was_paused = self.state is S.PAUSED
            try:
                if was_paused:
                    await pausing.let_answer(self)
                return await suspending.suspend(self, position)
            except BaseException:
                if was_paused:
                    await pausing.again(self)
                raise

    @asynccontextmanager
    async def looked_at(self) -> AsyncIterator[GuestSession]:
        """The guest of a running sandbox, or of a paused one, of whose workload nothing runs meanwhile. It does not go
        to sleep meanwhile. Raises Conflict."""
        with self.activity.busy():
            async with self._looked_at() as session:
                yield session

    @asynccontextmanager
    async def _looked_at(self) -> AsyncIterator[GuestSession]:
        if self.record.state is not S.PAUSED:
            yield self.need_running()
            return
        async with self.moving.looking():
            if self.state is not S.PAUSED:
                yield self.need_running()
                return
            try:
                await pausing.let_answer(self)
                assert self.session is not None
                async with self.moving.giving_way():
                    yield self.session
            finally:
                if self.state is S.PAUSED:
                    await pausing.again(self)

    async def suspend_idle(self, after_s: float) -> SnapshotInfo | None:
        """Suspend it, unless it was in use within that time by now. Who comes meanwhile finds it on its way
        (``awake``), and has it back."""
        async with self.moving:
            if self.state is not S.RUNNING or self.activity.is_busy or self.activity.idle_s < after_s:
                return None
            self.dozing = True  # from here on, in the same moment: see ``waking``
            try:
                return await suspending.suspend(self, None, reason="idle")
            finally:
                self.dozing = False

    async def awake(self, reason: WakeReason, progress: Progress = silent) -> None:
        """Return once it runs: one that is suspended, or just goes to sleep, is resumed, where its ``wake_on`` has this
        reason. Any number of callers may want it at once. Within ``activity.busy``, so that it does not go to sleep
        before it is used.

        Raises Conflict where it does not run and is not to be woken; what a resume raises.
        """
        await waking.awake(self, reason, progress)

    async def checkpoint(self, position: LogPosition | None = None) -> SnapshotInfo:
        """A snapshot of it while it runs on."""
        async with self.moving:
            return await checkpointing.checkpoint(self, position)

    async def resume(
        self,
        *,
        snapshot: str | None = None,
        calls: CallsEndpoint | None = None,
        progress: Progress = silent,
        ready: RestoreFiles | None = None,
        populate: bool | None = None,
        reason: str = "",
    ) -> SandboxInfo:
        """snapshot: roll back to this one, whatever the sandbox does now. calls: where its calls go from now on.
        ready: the files of that snapshot, where several sandboxes start from it. populate: see ``resuming``. reason:
        what the event says of why."""
        self.rooms.before_moving(self.id)
        async with self.moving:
            await resuming.resume(self, snapshot, calls, progress, ready, populate, reason)
            return self.info()

    async def compact(self, snapshot: str, progress: Progress = silent) -> compacting.Compacted:
        """Rewrite one of its snapshots (a digest, a former one, or a unique beginning) as one layer per space."""
        self.rooms.before_moving(self.id)
        async with self.moving:
            return await compacting.compact(self, snapshot, progress)

    async def take_compacted(self, old: str, new: str) -> compacting.Compacted:
        """Name ``new``, which was made from its snapshot ``old`` meanwhile (digests); also while it runs over that."""
        async with self.moving:
            return await compacting.take(self, old, new)

    async def forget(self, snapshot: str, *, force: bool = False) -> int:
        """Give one of its snapshots up; the bytes freed. force: also the one that it is suspended to."""
        self.rooms.before_moving(self.id)
        async with self.moving:
            with headroom.given(self.rooms.home):
                return await forgetting.forget(self, snapshot, force=force)

    async def reconcile(self, launcher: Launcher | None) -> None:
        """After a restart of the node."""
        async with self.moving:
            await adopting.reconcile(self, launcher)
        if self.state is S.REMOVING or (self.is_to_go and not self._tasks):
            await self.remove()

    async def leave(self) -> None:
        """The node ends: the machine runs on."""
        async with self.moving:
            self.health.stop()
            if self.main is not None:
                self.main.cancel()
            if self.machine is not None:
                self.machine.leave()
            await networking.withdraw(self)
            self.log.close()

    # -- the end ------------------------------------------------------------------------------------------------------
    async def stop(self, timeout_s: float | None = None, name: str = "") -> SandboxInfo:
        """The stop signal, after ``timeout_s`` KILL; negative: never. Nothing to do where nothing has run or all is
        over. Without the two: as its spec has them, then its image."""
        if self.state in (S.CREATED, S.EXITED):
            async with self.moving:  # a start may be under way, which says so only when it has all that it needs
                if self.state in (S.CREATED, S.EXITED):
                    if self.state is S.EXITED and self.record.spec.restart:
                        self.save(cause="stopped")  # so that its policy lets it be
                    return self.info()
        spec = self.record.spec
        if timeout_s is None:
            timeout_s = STOP_TIMEOUT_S if spec.stop_timeout_s is None else spec.stop_timeout_s
        number = signal_number(name or workload.stop_signal(spec, self.image.config))
        with self.activity.busy():  # or it may go to sleep before it obeys
            return await self._signal_to_end(number, "stopped", None if timeout_s < 0 else timeout_s)

    async def kill(self, name: str) -> SandboxInfo:
        number = signal_number(name)
        if number == signal.SIGKILL:
            if await self._kill_unfinished():
                async with self.moving:
                    if self.state is S.EXITED and self.record.spec.restart:
                        self.save(cause="killed")  # so that its policy lets it be
                    return self.info()
            with self.activity.busy():
                return await self._signal_to_end(number, "killed", KILL_TIMEOUT_S)
        with self.activity.busy():
            await (await self._running_main()).signal(number)
        return self.info()

    async def _running_main(self, *, kills: bool = False) -> Process:
        """``kills``: it is for SIGKILL, which ends what is frozen too; else one that is paused goes on before."""
        async with self.moving:
            if self.state is S.PAUSED:
                await (pausing.let_answer(self) if kills else pausing.unpause(self))
            else:
                self.need_running()
            if self.main is None:
                raise Conflict(f"the main process of sandbox {self.name} has exited")
            return self.main.process

    async def _signal_to_end(self, number: int, cause: str, timeout_s: float | None) -> SandboxInfo:
        main: Process | None = None
        try:
            main = await self._running_main(kills=number == signal.SIGKILL)
        except GuestFailed:  # it is paused, and its guest does not answer
            if number != signal.SIGKILL:
                raise
        self.stopping = cause
        try:
            if main is not None:
                async with asyncio.timeout(timeout_s):
                    await main.signal(number)
                    return await self.wait_exited()
        except (TimeoutError, PerdureError):
            pass  # it does not obey, or cannot: the machine ends
        async with self.moving:
            if self.state in (S.RUNNING, S.PAUSED):
                await syncing.sync(self)
                await self.end_machine(MachineFailed(f"sandbox {self.name} was {cause}"))
                self.exited("exited", cause, "", 128 + signal.SIGKILL)
            self.stopping = ""  # it was suspended in this moment: what ends it one day is another thing
        return self.info()

    async def wait_exited(self) -> SandboxInfo:
        """The sandbox once nothing of it runs, and nothing of it is suspended to run."""
        while True:
            changed = self.changed.next
            if self.state in (S.EXITED, S.REMOVING):
                return self.info()
            await changed.wait()

    async def _kill_unfinished(self) -> bool:
        """A start or resume that is under way fails at once: nobody should have to wait for it to kill it."""
        if self.state not in (S.STARTING, S.RESUMING) or self.machine is None:
            return False
        await self.machine.kill()
        return True

    async def remove(self, *, force: bool = False, volumes: bool = False) -> None:
        """Its machine (with ``force``), its files, its snapshots; with ``volumes`` also those without a name, as where
        it was to be removed by itself."""
        if force:
            await self._kill_unfinished()
        self.rooms.before_moving(self.id)
        async with self.moving:
            if not self.folder.root.exists():
                raise NotFound(f"sandbox {self.name} is removed already")
            with headroom.given(self.rooms.home):
                if force and self.state in (S.RUNNING, S.PAUSED):
                    if mounts.writes_volumes(self.record.spec):
                        if self.state is S.PAUSED:
                            await self.let_answer()
                        await syncing.sync(self)
                    await self.end_machine(MachineFailed(f"sandbox {self.name} was removed"))
                    self.happened("exited", cause="killed", exit_status=128 + signal.SIGKILL, finished=time.time())
                    self.emit("exited", cause="killed", exit_status=128 + signal.SIGKILL)
                self.move("remove")
                if self.session is not None:
                    self.session.close(NotFound(f"sandbox {self.name} was removed"))
                await self.drop(kept.info.digest for kept in self.record.snapshots)
                self.log.close()
                await networking.withdraw(self)
                await asyncio.to_thread(self.folder.remove)
                self.emit("removed")
                if volumes or self.record.spec.auto_remove:
                    await asyncio.to_thread(self.rooms.volumes.remove_anonymous, self.record.spec)

    # -- what runs in it ----------------------------------------------------------------------------------------------
    async def exec(self, wish: ExecSpec) -> Process:
        """Of a suspended one: see ``awake``. Raises CommandNotFound, CommandNotExecutable, InvalidValue, Conflict; a
        suspend meanwhile only delays it."""
        with self.activity.busy():
            await self.awake(WakeReason.EXEC)
            return await self.beside(wish)

    async def process(self, process_id: str) -> Process:
        """A process by id, once the sandbox runs (the main one's is ``main_id``). Raises Conflict when it is over."""
        while True:
            changed = self.changed.next
            if self.state is S.RUNNING and self.session is not None:
                if (process := self.session.processes.get(process_id)) is not None:
                    return process
                raise Conflict(f"the process is not in sandbox {self.name} any more")
            if self.state in (S.EXITED, S.REMOVING):
                raise Conflict(f"sandbox {self.name} has ended ({self.record.cause})", cause=self.record.cause)
            await changed.wait()

    @property
    def files(self) -> GuestFiles:
        """The guest's files while the sandbox runs; a suspend meanwhile only delays what is under way."""
        return self.need_running().files

    def foretold(self, path: str, *, follow: bool) -> Entry:
        """What there will be at a path when it starts: of one that is created. Blocking. Raises NotFound, InvalidValue,
        Conflict (it is not created), Unsupported."""
        if self.state is not S.CREATED:
            raise Conflict(f"sandbox {self.name} is {self.state}")
        wanted = posixpath.normpath(path)
        if (mode := archive.found(self.folder.archives, wanted)) is not None:
            return Entry(mode)
        for mount in self.record.spec.mounts:
            if mount.target == wanted or mount.target.startswith(wanted.rstrip("/") + "/"):
                return Entry(stat.S_IFDIR | 0o755)
            if wanted.startswith(mount.target + "/"):
                raise NotFound(f"{path}: it is not known before the start what is on the mount {mount.target}")
        return entries.find(self.image.squashfs, path, follow=follow)

    @asynccontextmanager
    async def before_start(self) -> AsyncIterator[None]:
        """Nothing moves meanwhile: for what is put in before the start."""
        async with self.moving:
            if self.state is not S.CREATED:
                raise Conflict(f"sandbox {self.name} is {self.state}")
            yield


def signal_number(name: str) -> int:
    """15 for "15", "TERM" and "SIGTERM". Raises InvalidValue."""
    text = name.upper().removeprefix("SIG")
    try:
        return signal.Signals(int(text)).value if text.isdigit() else signal.Signals[f"SIG{text}"].value
    except (KeyError, ValueError):
        raise InvalidValue(f"no such signal: {name}", hint="Use a name like TERM or a number like 15.") from None
