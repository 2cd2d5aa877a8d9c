"""One sandbox: its record, its machine while there is one, and the use cases that move it from state to state."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec

from perdure.errors import Conflict, InvalidValue, MachineFailed, NotFound, PerdureError, StaleEpoch
from perdure.execution.guest.session import GuestCall, GuestSession, Identity, Process
from perdure.execution.images.image import Image
from perdure.execution.images.library import ImageLibrary
from perdure.execution.machine.remote import Keeper, Launcher
from perdure.execution.sandboxes import archive, disk, states, workload
from perdure.execution.sandboxes.ground import Ground
from perdure.execution.sandboxes.logfile import LogFile, Watch
from perdure.execution.sandboxes.machine import Machine, end_stray, why_gone
from perdure.execution.sandboxes.mainprocess import MainProcess
from perdure.execution.sandboxes.record import Folder, KeptSnapshot, Record
from perdure.execution.snapshots import capture, restore
from perdure.execution.snapshots.store import Store
from perdure.execution.snapshots.templates import Template
from perdure.formats.logs import STDERR, STDOUT
from perdure.formats.manifest import Snapshot
from perdure.host.paths import Home
from perdure.host.progress import Progress, silent
from perdure.model import CallsEndpoint, ExecSpec, LogPosition, SandboxInfo, SnapshotInfo
from perdure.model import SandboxState as S

READY_TIMEOUT_S = 60.0  # a restored guest dials within milliseconds; an emulated one on a busy machine takes seconds
QUIESCE_BUDGET_S = 2.0
ENTROPY_BYTES = 64
SYNC_BUDGET_S = 5.0
KILL_TIMEOUT_S = 10.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rooms:
    """What all sandboxes of a node share."""

    home: Home
    ground: Ground
    images: ImageLibrary
    store: Store
    answer_call: Callable[[CallsEndpoint | None, GuestCall], Awaitable[None]]  # raises StaleEpoch: end the machine
    emit: Callable[[str, Record, dict[str, Any]], None]  # a NodeEvent


class Sandbox:
    """Use cases raise IllegalTransition where the table has no arrow. One moves the sandbox at a time."""

    def __init__(self, rooms: Rooms, folder: Folder, record: Record) -> None:
        self.record = record
        self.changed = Watch()  # the state changed
        self.folder = folder
        self.log = LogFile(folder.log)
        self.session: GuestSession | None = None  # outlives the machine while suspended: streams go on where they were
        self._rooms = rooms
        self._machine: Machine | None = None
        self._main: MainProcess | None = None
        self._moving = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._figures: dict[str, Any] = {}
        self._session_parent: str | None = None  # the snapshot that ``session`` can go on from
        self._stopping = ""  # the cause to record when the main process exits now

    # -- what it is ---------------------------------------------------------------------------------------------------
    @property
    def id(self) -> str:
        return self.record.id

    @property
    def state(self) -> S:
        return self.record.state

    @property
    def hostname(self) -> str:
        return self.record.spec.hostname or self.record.id

    def info(self) -> SandboxInfo:
        record = self.record
        current = record.snapshot(record.parent) if record.parent else None
        return SandboxInfo(
            id=record.id,
            name=record.name,
            spec=record.spec,
            state=record.state,
            created=record.created,
            started=record.started,
            finished=record.finished,
            exit_status=record.exit_status,
            cause=record.cause,
            detail=record.detail,
            image_digest=record.image_digest,
            snapshot=current.info if current else None,
            stored_bytes=sum(
                kept.info.memory_bytes + kept.info.disk_bytes + kept.info.state_bytes for kept in record.snapshots
            ),
            machine=self._figures if record.state in states.LIVE else {},
        )

    def _image(self) -> Image:
        return self._rooms.images.get(self.record.image_digest)

    def _save(self, **changes: Any) -> None:
        record = msgspec.structs.replace(self.record, **changes)
        self.folder.save(record)
        self.record = record

    def _move(self, event: str, **changes: Any) -> None:
        """Follow an arrow of the table, durably, and tell everybody who looks on."""
        self._save(state=states.after(self.state, event, name=self.record.name), **changes)
        self.changed.notify()
        self.log.changed.notify()

    def _check(self, event: str) -> None:
        states.after(self.state, event, name=self.record.name)

    def _emit(self, kind: str, **details: Any) -> None:
        self._rooms.emit(f"sandbox.{kind}", self.record, details)

    def _spawn_task(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- start --------------------------------------------------------------------------------------------------------
    async def start(self, progress: Progress = silent) -> SandboxInfo:
        """From the warm template to a running main process."""
        async with self._moving:
            self._check("start")
            began = time.monotonic()
            image, spec = self._image(), self.record.spec
            process = workload.main_process(spec, image.config, self.hostname)
            disk.admit(self._rooms.home.sandboxes, 0, "a start")
            template = await self._rooms.ground.template(spec.vcpus, spec.memory_mib, progress)
            launcher = await self._rooms.ground.launcher(progress)
            self._move("start", parent=None, exit_status=None, finished=None, cause="", detail="", full_next=False)
            try:
                await self._make_disk()
                await self._restore_template(launcher, template, image)
                ready = time.monotonic()
                session = self._need_session()
                await archive.unpack_all(self.folder.archives, session.files)
                self.log.restart()
                main = await session.exec(process, process_id=self.id)
            except BaseException as error:
                await self._abort(error)
                raise
            self._follow(main)
            self._move("started", started=time.time())
            self._figures |= {"ready_s": ready - began, "total_s": time.monotonic() - began, "main_pid": main.pid}
            self._emit("started")
            return self.info()

    async def _make_disk(self) -> None:
        if self.record.has_disk:
            return
        folder = self.folder.machine(self.record.generation)
        folder.mkdir(mode=0o700, exist_ok=True)
        empty_disks = self._rooms.home.root / "disks"
        await asyncio.to_thread(disk.make, empty_disks, self.record.spec.disk_mib, folder / "overlay")
        self._save(has_disk=True)

    async def _restore_template(self, launcher: Launcher, template: Template, image: Image) -> None:
        session = self._new_session(None)
        machine = await self._spawn(launcher, session)
        overlay = self.folder.machine(self.record.generation) / "overlay"
        answer = await machine.request(
            "restore",
            firecracker=str((await self._rooms.ground.assets()).firecracker),
            state=str(template.state),
            memory={"kind": "file", "path": str(template.memory), "name": template.name},
            drives={"image": str(image.squashfs), "overlay": str(overlay)},
            swap=True,
        )
        await session.ready(READY_TIMEOUT_S)
        # clones of a template share its clock and its entropy: both are renewed before anything runs
        await session.configure(hostname=self.hostname)
        await session.wake(time.time(), os.urandom(ENTROPY_BYTES), Identity(self.hostname, os.urandom(16).hex()))
        await self._measure(answer)

    async def _spawn(self, launcher: Launcher, session: GuestSession) -> Machine:
        await end_stray(launcher, self.id)
        keeper = await launcher.spawn(self.id)
        return self._hold(launcher, keeper, session)

    def _hold(self, launcher: Launcher, keeper: Keeper, session: GuestSession) -> Machine:
        machine = Machine(launcher, keeper, session, lambda cause, detail: self._died(machine, cause, detail))
        self._machine = machine
        return machine

    def _new_session(self, parent: str | None) -> GuestSession:
        if self.session is not None:
            self.session.close(Conflict(f"sandbox {self.record.name} went on from another point"))
        self.session = GuestSession(self._answer_call)
        self._session_parent = parent
        return self.session

    def _need_session(self) -> GuestSession:
        if self.session is None:
            raise MachineFailed(f"sandbox {self.record.name} has no machine")
        return self.session

    async def _measure(self, answer: dict[str, Any]) -> None:
        facts = await self._need_machine().request("stat")
        self._figures = {
            "keeper_pid": facts.get("pid"),
            "firecracker_pid": facts.get("firecracker_pid"),
            "pager_pid": facts.get("pager_pid"),
            "backend": facts.get("backend"),
            "emulated": self._rooms.ground.emulated,
            "load_s": answer.get("load_s"),
        }

    def _need_machine(self) -> Machine:
        if self._machine is None:
            raise MachineFailed(f"sandbox {self.record.name} has no machine")
        return self._machine

    async def _abort(self, error: BaseException) -> None:
        """A start failed: end what there is of a machine, and say why in the record."""
        _log.warning("start of %s failed: %r", self.id, error)
        await self._end_machine(MachineFailed(f"sandbox {self.record.name} did not start"))
        status = error.exit_status if isinstance(error, PerdureError) and error.exit_status in (126, 127) else 125
        detail = error.message if isinstance(error, PerdureError) else repr(error)
        self._move("died", cause="start-failed", detail=detail, exit_status=status, finished=time.time())
        self._emit("exited", cause="start-failed", exit_status=status)
        self._maybe_remove()

    async def _end_machine(self, reason: PerdureError) -> None:
        if self._main is not None and self._main.over is False:
            self._main.cancel()
        self._main = None
        if self._machine is not None:
            await self._machine.end()
        self._machine = None
        if self.session is not None:
            self.session.close(reason)
        self.session = None

    def _follow(self, process: Process) -> None:
        for stream in (STDOUT, STDERR):
            process.skip_to(stream, self.log.positions[stream])
        self._main = MainProcess(process, self.log, self._main_exited)

    # -- the end of it ------------------------------------------------------------------------------------------------
    async def _main_exited(self, status: int) -> None:
        process = self._main.process if self._main else None
        async with self._moving:
            if self.state is not S.RUNNING or self._main is None or self._main.process is not process:
                return  # suspended in this moment: told again after the resume
            cause = self._stopping or "exit"
            if not self.record.spec.auto_remove:
                await self._sync()
            self._main = None
            await self._end_machine(MachineFailed(f"sandbox {self.record.name} has exited"))
            self._exited("exited", cause, "", status)

    async def _sync(self) -> None:
        """Bring the guest's files to its disk: they are kept for the next start."""
        try:
            async with asyncio.timeout(SYNC_BUDGET_S):
                await self._need_session().quiesce(SYNC_BUDGET_S)
        except (PerdureError, TimeoutError) as error:
            _log.warning("sync of %s: %s", self.id, error)

    def _exited(self, event: str, cause: str, detail: str, status: int | None) -> None:
        self._stopping = ""
        self._move(event, cause=cause, detail=detail, exit_status=status, finished=time.time())
        self._emit("exited", cause=cause, detail=detail, exit_status=status)
        self._maybe_remove()

    def _maybe_remove(self) -> None:
        # what died while it has a snapshot is not over: it can be resumed
        if self.record.spec.auto_remove and not (self.record.snapshots and self.record.exit_status is None):
            self._spawn_task(self.remove())

    def _died(self, machine: Machine, cause: str, detail: str) -> None:
        self._spawn_task(self._bury(machine, cause, detail))

    async def _bury(self, machine: Machine, cause: str, detail: str) -> None:
        # an operation that is under way sees its request fail, and settles the state itself
        async with self._moving:
            if self._machine is not machine or self.state is not S.RUNNING:
                return
            _log.warning("machine of %s died: %s %s", self.id, cause, detail)
            await self._lost(cause, detail)

    async def _lost(self, cause: str, detail: str) -> None:
        hint = "Go on from its last snapshot: fcrun resume" if self.record.snapshots else "Start it again: fcrun start"
        reason = MachineFailed(f"the machine of sandbox {self.record.name} died ({cause})", hint=hint, cause=cause)
        await self._end_machine(reason)
        self._exited("died", self._stopping or cause, detail, 137 if self._stopping else None)

    async def stop(self, timeout_s: float) -> SandboxInfo:
        """The stop signal, after ``timeout_s`` KILL. Nothing to do where nothing runs."""
        if self.state in (S.CREATED, S.EXITED):
            return self.info()
        name = self._image().config.stop_signal or "TERM"
        return await self._signal_to_end(signal_number(name), "stopped", timeout_s)

    async def kill(self, name: str) -> SandboxInfo:
        number = signal_number(name)
        if number == signal.SIGKILL:
            return await self._signal_to_end(number, "killed", KILL_TIMEOUT_S)
        await (await self._running_main()).signal(number)
        return self.info()

    async def _running_main(self) -> Process:
        async with self._moving:
            self._need_running()
            if self._main is None:
                raise Conflict(f"the main process of sandbox {self.record.name} has exited")
            return self._main.process

    def _need_running(self) -> GuestSession:
        if self.state is not S.RUNNING:
            hints = {S.SUSPENDED: "Go on with it: fcrun resume", S.CREATED: "Start it: fcrun start"}
            raise Conflict(f"sandbox {self.record.name} is {self.state}, not running", hint=hints.get(self.state, ""))
        return self._need_session()

    async def _signal_to_end(self, number: int, cause: str, timeout_s: float) -> SandboxInfo:
        main = await self._running_main()
        self._stopping = cause
        try:
            async with asyncio.timeout(timeout_s):
                await main.signal(number)
                return await self.wait_exited()
        except (TimeoutError, PerdureError):
            pass  # it does not obey, or cannot: the machine ends
        async with self._moving:
            if self.state is S.RUNNING:
                await self._sync()
                await self._end_machine(MachineFailed(f"sandbox {self.record.name} was {cause}"))
                self._exited("exited", cause, "", 128 + signal.SIGKILL)
        return self.info()

    async def wait_exited(self) -> SandboxInfo:
        """The sandbox once nothing of it runs, and nothing of it is suspended to run."""
        while True:
            changed = self.changed.next
            if self.state in (S.EXITED, S.REMOVING):
                return self.info()
            await changed.wait()

    async def remove(self, *, force: bool = False) -> None:
        """Its machine, its files, its snapshots."""
        async with self._moving:
            if not self.folder.root.exists():
                raise NotFound(f"sandbox {self.record.name} is removed already")
            if force and self.state is S.RUNNING:
                await self._end_machine(MachineFailed(f"sandbox {self.record.name} was removed"))
                self._move("exited", cause="killed", exit_status=137, finished=time.time())
                self._emit("exited", cause="killed", exit_status=137)
            self._move("remove")
            if self.session is not None:
                self.session.close(NotFound(f"sandbox {self.record.name} was removed"))
            digests = [kept.info.digest for kept in self.record.snapshots]
            await asyncio.to_thread(self._rooms.store.remove, digests)
            self.log.close()
            await asyncio.to_thread(self.folder.remove)
            self._emit("removed")

    # -- suspend and resume -------------------------------------------------------------------------------------------
    async def suspend(self, position: LogPosition | None = None) -> SnapshotInfo:
        """Freeze, capture, pack; then end the machine, which has not run since. Refused at any step: it goes on."""
        async with self._moving:
            self._check("suspend")
            began = time.monotonic()
            spec = self.record.spec
            disk.admit(self._rooms.home.store, 0, "a suspend")
            template = await self._rooms.ground.template(spec.vcpus, spec.memory_mib)
            parent: Snapshot | Template = template
            if self.record.parent is not None:
                parent = await asyncio.to_thread(self._rooms.store.get, self.record.parent)
            machine, session = self._need_machine(), self._need_session()
            kind = "full" if self.record.full_next else "diff"
            self._move("suspend")
            try:
                await session.quiesce(QUIESCE_BUDGET_S)
                await machine.request("pause")
                self._save(full_next=True)  # until it is packed: a lost diff cannot be taken again
                captured = await machine.request("capture", kind=kind, folder=str(self.folder.capture), end=False)
                snapshot = await asyncio.to_thread(self._pack, parent, template, position, captured)
            except BaseException as error:
                await self._go_on(machine, session, error)
                raise
            info = snapshot.info(total_s=time.monotonic() - began)
            kept = KeptSnapshot(
                info=info,
                stdout=self.log.positions[STDOUT],
                stderr=self.log.positions[STDERR],
                started=self.record.started,
            )
            self._move(
                "suspended",
                parent=info.digest,
                snapshots=[*self.record.snapshots, kept],
                full_next=False,
                has_disk=False,
            )
            self._session_parent = info.digest
            await machine.end()
            self._machine = None
            await asyncio.to_thread(self.folder.tidy, self.record)
            self._emit("suspended", snapshot=info.digest, stored_bytes=info.memory_bytes + info.disk_bytes)
            return info

    def _pack(
        self, parent: Snapshot | Template, template: Template, position: LogPosition | None, captured: dict[str, Any]
    ) -> Snapshot:
        return capture.pack(
            self._rooms.store,
            folder=self.folder.capture,
            overlay=self.folder.machine(self.record.generation) / "overlay",
            parent=parent,
            templates=self._rooms.home.templates,
            sandbox_id=self.id,
            image_digest=self.record.image_digest,
            facts=template.facts,
            position=position,
            pause_s=float(captured.get("pause_s", 0.0)),
        )

    async def _go_on(self, machine: Machine, session: GuestSession, error: BaseException) -> None:
        """A suspend was refused: thaw."""
        _log.warning("suspend of %s failed: %r", self.id, error)
        await asyncio.to_thread(shutil.rmtree, self.folder.capture, ignore_errors=True)
        try:
            if machine.over:
                raise MachineFailed("its machine died")
            await machine.request("continue")
            await session.wake(time.time(), os.urandom(ENTROPY_BYTES))
        except (PerdureError, TimeoutError) as reason:
            cause, detail = await why_gone(await self._rooms.ground.launcher(), self.id)
            _log.warning("%s cannot go on: %s", self.id, reason)
            await self._lost(cause, detail)
            return
        self._move("refused")

    async def resume(
        self, *, snapshot: str | None = None, calls: CallsEndpoint | None = None, progress: Progress = silent
    ) -> SandboxInfo:
        """Go on from the newest snapshot of its line, or roll back to the one that is named."""
        async with self._moving:
            event = "roll back" if snapshot and self.state is S.RUNNING else "resume"
            self._check(event)
            began = time.monotonic()
            kept = self._choose(snapshot)
            stored = await asyncio.to_thread(self._rooms.store.get, kept.info.digest)
            spec, image = self.record.spec, self._image()
            template = await self._rooms.ground.template(spec.vcpus, spec.memory_mib, progress)
            launcher = await self._rooms.ground.launcher(progress)
            goes_on = self.session is not None and self._session_parent == stored.digest and self._machine is None
            if not goes_on:
                await self._end_machine(Conflict(f"sandbox {self.record.name} went back to an older snapshot"))
            self._move(event, parent=stored.digest, exit_status=None, finished=None, cause="", detail="")
            generation = self.record.generation + 1
            files = self.folder.machine(generation)
            try:
                prepared = await asyncio.to_thread(self._prepare, stored, files, template)
                self._save(generation=generation, has_disk=True, calls=calls or self.record.calls)
                if not goes_on:
                    self.log.restart(kept.stdout, kept.stderr)
                session = self.session if self.session is not None and goes_on else self._new_session(None)
                machine = await self._spawn(launcher, session)
                answer = await machine.request(
                    "restore",
                    firecracker=str((await self._rooms.ground.assets()).firecracker),
                    state=str(prepared.state),
                    memory={"kind": "layers", "map": str(prepared.memory_map)},
                    drives={"image": str(image.squashfs), "overlay": str(prepared.overlay)},
                    swap=False,
                )
                await session.ready(READY_TIMEOUT_S)
                ready = time.monotonic()
                main = self._find_main(session)
                await session.wake(time.time(), os.urandom(ENTROPY_BYTES))
                total_s = time.monotonic() - began
                await self._measure(answer)
            except BaseException as error:
                _log.warning("resume of %s failed: %r", self.id, error)
                await self._end_machine(MachineFailed(f"sandbox {self.record.name} did not resume"))
                self._save(has_disk=False)
                await asyncio.to_thread(self.folder.tidy, self.record)
                self._move("refused")
                raise
            self._session_parent = None
            if self._main is None or self._main.over or self._main.process is not main:
                self._follow(main)
            self._move("resumed", started=kept.started)
            await asyncio.to_thread(self.folder.tidy, self.record)
            self._figures |= {"ready_s": ready - began, "total_s": total_s, "main_pid": main.pid}
            self._emit("resumed", snapshot=stored.digest, total_s=total_s)
            return self.info()

    def _choose(self, wanted: str | None) -> KeptSnapshot:
        if wanted:
            kept = self.record.snapshot(wanted)
            if kept is None:
                raise NotFound(f"sandbox {self.record.name} has no snapshot {wanted}", hint="fcrun inspect names them")
            return kept
        if self.record.parent and (kept := self.record.snapshot(self.record.parent)):
            return kept
        if not self.record.snapshots:
            raise NotFound(
                f"sandbox {self.record.name} has no snapshot to resume from",
                hint=f"Start it again, on the files that it left: fcrun start {self.record.name}",
            )
        return self.record.snapshots[-1]

    def _prepare(self, stored: Snapshot, folder: Any, template: Template) -> restore.RestoreFiles:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        return restore.prepare(
            self._rooms.store, stored, folder=folder, templates=self._rooms.home.templates, facts=template.facts
        )

    def _find_main(self, session: GuestSession) -> Process:
        if (process := session.processes.get(self.id)) is None:
            raise MachineFailed(f"the guest of sandbox {self.record.name} does not know its main process")
        return process

    # -- after a restart of the node ----------------------------------------------------------------------------------
    async def reconcile(self, launcher: Launcher | None) -> None:
        """Join the record with what lives: adopt, roll back, finish, or say how it died."""
        async with self._moving:
            await asyncio.to_thread(self.folder.tidy, self.record)
            before = self.state
            if before in (S.STARTING, S.RUNNING, S.SUSPENDING):
                await self._adopt(launcher)
            elif before is S.RESUMING:
                if launcher is not None:
                    await end_stray(launcher, self.id)
                self._save(has_disk=False)
                self._move("refused")
                await asyncio.to_thread(self.folder.tidy, self.record)
            elif launcher is not None:
                await end_stray(launcher, self.id)
        if before is S.REMOVING or (before is S.EXITED and self.record.spec.auto_remove and not self.record.snapshots):
            await self.remove()

    async def _adopt(self, launcher: Launcher | None) -> None:
        if launcher is None:
            self._exited("died", "host-lost", "found so when the node started", None)
            return
        try:
            keeper = await launcher.attach(self.id)
        except PerdureError as error:
            cause, detail = await why_gone(launcher, self.id)
            _log.warning("%s has no keeper: %s", self.id, error)
            self._exited("died", cause, detail, None)
            await launcher.forget(self.id)
            return
        session = self._new_session(None)
        machine = self._hold(launcher, keeper, session)
        try:
            if keeper.facts.get("state") == "paused":
                await machine.request("continue")
            guest = await session.ready(READY_TIMEOUT_S)
            if guest.frozen:
                await session.wake(time.time(), os.urandom(ENTROPY_BYTES))
            main = self._find_main(session)
            await self._measure({})
        except (PerdureError, TimeoutError) as error:
            _log.warning("adoption of %s failed: %s", self.id, error)
            cause, detail = ("adoption-failed", str(error)) if not machine.over else await why_gone(launcher, self.id)
            await self._lost(cause, detail)
            return
        self._figures["main_pid"] = main.pid
        if self.state is S.STARTING:
            self._move("started", started=time.time())
        elif self.state is S.SUSPENDING:
            self._move("refused")
        self._follow(main)
        self._emit("adopted")

    async def leave(self) -> None:
        """The node ends: let the machine run on."""
        async with self._moving:
            if self._main is not None:
                self._main.cancel()
            if self._machine is not None:
                self._machine.leave()
            self.log.close()

    # -- what runs in it ----------------------------------------------------------------------------------------------
    async def exec(self, wish: ExecSpec) -> Process:
        async with self._moving:
            session = self._need_running()
        spec = self.record.spec
        return await session.exec(workload.side_process(wish, spec, self._image().config, self.hostname))

    async def process(self, process_id: str) -> Process:
        """A process by id, once the sandbox runs; of the main process: its own id. Raises Conflict when it is over."""
        while True:
            changed = self.changed.next
            if self.state is S.RUNNING and self.session is not None:
                if (process := self.session.processes.get(process_id)) is not None:
                    return process
                raise Conflict(f"the process is not in sandbox {self.record.name} any more")
            if self.state in (S.EXITED, S.REMOVING):
                raise Conflict(f"sandbox {self.record.name} has ended ({self.record.cause})", cause=self.record.cause)
            await changed.wait()

    def discard(self, process: Process) -> None:
        """Nobody reads this process: drop what it writes, so that it never waits, and forget it when it exits."""
        self._spawn_task(_drain(process))

    @asynccontextmanager
    async def files(self) -> AsyncIterator[Any]:
        """The guest's files while the sandbox runs; it is not suspended meanwhile."""
        async with self._moving:
            yield self._need_running().files

    @asynccontextmanager
    async def before_start(self) -> AsyncIterator[None]:
        """Nothing moves meanwhile: for what is put in before the start."""
        async with self._moving:
            if self.state is not S.CREATED:
                raise Conflict(f"sandbox {self.record.name} is {self.state}")
            yield

    async def _answer_call(self, call: GuestCall) -> None:
        try:
            await self._rooms.answer_call(self.record.calls, call)
        except StaleEpoch as error:
            self._spawn_task(self._fence(error))

    async def _fence(self, error: StaleEpoch) -> None:
        """Another machine owns the run now: this one must not go on."""
        async with self._moving:
            if self.state is S.RUNNING:
                await self._end_machine(error)
                self._exited("died", "stale-epoch", error.message, None)


async def _drain(process: Process) -> None:
    try:
        async for stream, offset, data in process.output():
            process.ack(stream, offset + len(data))
        await process.wait()
        process.release()
    except PerdureError:
        pass  # its machine is gone


def signal_number(name: str) -> int:
    """15 for "15", "TERM" and "SIGTERM". Raises InvalidValue."""
    text = name.upper().removeprefix("SIG")
    try:
        return signal.Signals(int(text)).value if text.isdigit() else signal.Signals[f"SIG{text}"].value
    except (KeyError, ValueError):
        raise InvalidValue(f"no such signal: {name}", hint="Use a name like TERM or a number like 15.") from None
