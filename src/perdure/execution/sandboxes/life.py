"""The life of one sandbox between its use cases: the record, the machine while there is one, and how it ends.

What this offers is for the modules beside it (``starting``, ``suspending``, ``resuming``, ``adopting``); ``Sandbox`` is
what others use. Whoever changes the state holds ``moving``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Coroutine, Iterable
from typing import Any

import msgspec

from perdure.errors import AlreadyRunning, Conflict, GuestFailed, MachineFailed, NoSpace, PerdureError, StaleEpoch
from perdure.execution.guest.session import GuestCall, GuestSession, Identity, Process
from perdure.execution.images.image import Image
from perdure.execution.machine.remote import Keeper, Launcher
from perdure.execution.network.publishing import Published
from perdure.execution.sandboxes import acting, fittings, mounts, networking, states, syncing, workload
from perdure.execution.sandboxes.activity import Activity
from perdure.execution.sandboxes.health import HealthWatch
from perdure.execution.sandboxes.logfile import LogFile, Watch
from perdure.execution.sandboxes.machine import Machine, end_stray
from perdure.execution.sandboxes.mainprocess import MainProcess
from perdure.execution.sandboxes.moving import Moving
from perdure.execution.sandboxes.phases import Phases
from perdure.execution.sandboxes.record import Folder, Record
from perdure.execution.sandboxes.rooms import Rooms
from perdure.formats.logs import STDERR, STDOUT
from perdure.formats.usagereport import GuestUsage
from perdure.host.progress import Progress, silent
from perdure.model import ExecSpec, HealthCheck, SandboxInfo, WakeReason
from perdure.model import SandboxState as S

READY_TIMEOUT_S = 60.0  # a restored guest dials within milliseconds; an emulated one on a busy machine takes seconds
SAVE_AGAIN_S = 1.0
ENTROPY_BYTES = 64

_log = logging.getLogger(__name__)


class Life(ABC):
    """``session`` outlives the machine while suspended, so that streams go on where they were."""

    def __init__(self, rooms: Rooms, folder: Folder, record: Record) -> None:
        self.rooms = rooms
        self.folder = folder
        self.record = record
        self.log = LogFile(folder.log)
        self.changed = Watch()  # the state changed
        self.activity = Activity()
        self.dozing = False  # it is being suspended as nobody used it
        self.waking: asyncio.Task[None] | None = None  # for all who wait for it
        self.moving = Moving()
        self.session: GuestSession | None = None
        self.session_parent: str | None = None  # the snapshot that ``session`` can go on from
        self.machine: Machine | None = None
        self.main: MainProcess | None = None
        self.published: Published | None = None  # while the node listens for its ports
        self.figures: dict[str, Any] = {}
        self.usage: GuestUsage | None = None  # what its guest said last that its workload uses
        self.tried = 0  # the highest number of a machine's folder that was used: see ``fresh_generation``
        self.stopping = ""  # the cause to record when the main process exits now
        self.health = HealthWatch(self)
        self._tasks: set[asyncio.Task[None]] = set()

    # -- what it is ---------------------------------------------------------------------------------------------------
    @property
    def id(self) -> str:
        return self.record.id

    @property
    def main_id(self) -> str:
        """Of the main process in the guest: a fork's guest was made under its origin's id."""
        return self.record.main or self.record.id

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def state(self) -> S:
        return self.record.state

    @property
    def hostname(self) -> str:
        return self.record.spec.hostname or self.record.id

    @property
    def image(self) -> Image:
        return self.rooms.images.get(self.record.image_digest)

    @property
    def is_to_go(self) -> bool:
        """Whether it is over, and was to be removed then. What died while it has a snapshot is not: it can be
        resumed."""
        record = self.record
        is_over = record.state is S.EXITED and (record.exit_status is not None or not record.snapshots)
        return is_over and record.spec.auto_remove

    def info(self) -> SandboxInfo:
        record = self.record
        current = record.snapshot(record.parent) if record.parent else None
        current = current or (record.snapshots[-1] if record.snapshots else None)
        return SandboxInfo(
            id=record.id,
            name=record.name,
            spec=acting.current().shown(record.spec),
            state=record.state,
            created=record.created,
            started=record.started,
            finished=record.finished,
            exit_status=record.exit_status,
            cause=record.cause,
            detail=record.detail,
            restarts=record.restarts,
            image_digest=record.image_digest,
            snapshot=current.info if current else None,
            held=[kept.held for kept in record.snapshots],
            stored_bytes=sum(kept.info.stored_bytes for kept in record.snapshots if kept.info.sandbox_id == record.id),
            addresses=record.addresses,
            ports=record.ports if self.published is not None else [],
            health=self.health.health,
            machine=self.figures | self._fed() if record.state in states.LIVE else {},
            owner=record.owner,
            epoch=record.calls.epoch if record.calls else None,
        )

    def _fed(self) -> dict[str, Any]:
        fed = self.machine.fed if self.machine is not None else {}
        return {"fed": fed} if fed else {}

    # -- moving -------------------------------------------------------------------------------------------------------
    def check(self, event: str) -> None:
        """Raises IllegalTransition where the table has no such arrow from here."""
        states.after(self.state, event, name=self.name)

    def save(self, **changes: Any) -> None:
        """Change the record durably."""
        record = msgspec.structs.replace(self.record, **changes)
        self.folder.save(record)
        self.record = record

    def move(self, event: str, **changes: Any) -> None:
        """Follow an arrow of the table, durably, and wake everybody who looks on."""
        self.save(state=states.after(self.state, event, name=self.name), **changes)
        self._moved()

    def happened(self, event: str, **changes: Any) -> None:
        """The same for what cannot be refused any more, also where the disk is full: durable as soon as it can be."""
        state = states.after(self.state, event, name=self.name)
        self.record = msgspec.structs.replace(self.record, state=state, **changes)
        try:
            self.folder.save(self.record)
        except (OSError, NoSpace) as error:
            _log.warning("%s is %s, which cannot be written down yet: %s", self.id, state, error)
            self.spawn_task(self._save_again())
        self._moved()

    async def _save_again(self) -> None:
        while self.folder.root.exists():
            await asyncio.sleep(SAVE_AGAIN_S)
            try:
                self.folder.save(self.record)
                return
            except (OSError, NoSpace):
                continue

    def _moved(self) -> None:
        self.changed.notify()
        self.log.changed.notify()
        self.health.moved()

    def emit(self, kind: str, **details: Any) -> None:
        self.rooms.emit(f"sandbox.{kind}", self.record, details)

    def spawn_task(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- machine and session ------------------------------------------------------------------------------------------
    def new_session(self) -> GuestSession:
        """A fresh endpoint for the guest; who waits at a former one is told."""
        if self.session is not None:
            self.session.close(Conflict(f"sandbox {self.name} went on from another point"))
        self.session, self.session_parent = GuestSession(self._answer_call), None
        return self.session

    @contextlib.asynccontextmanager
    async def admitted(self) -> AsyncIterator[None]:
        """Room for its next machine, until it has one. Raises NoRoom."""
        host_bytes = await self.rooms.ground.memory_bytes()
        with self.rooms.admission.room(self.id, self.record.spec.memory_mib, host_bytes):
            yield

    async def check_room(self) -> None:
        """Again, once what it is to run on is there, as its memory is known only then. Raises NoRoom."""
        self.rooms.admission.check({self.id: self.record.spec.memory_mib}, await self.rooms.ground.memory_bytes())

    async def spawn(self, launcher: Launcher, session: GuestSession) -> Machine:
        """A keeper for this sandbox, joined to the session; no machine yet."""
        assets = await self.rooms.ground.assets()
        firecracker, pager = str(assets.firecracker), str(assets.pager)
        try:
            keeper = await launcher.spawn(self.id, firecracker=firecracker, pager=pager)
        except AlreadyRunning:
            await end_stray(launcher, self.id)  # of an end that was not heard
            keeper = await launcher.spawn(self.id, firecracker=firecracker, pager=pager)
        return self.hold(launcher, keeper, session)

    def fresh_generation(self) -> int:
        """A number for the folder of its next machine. None is used twice, not even after a resume that failed: below
        the line a shared folder remembers for a while what a name meant before."""
        self.tried = max(self.tried, self.record.generation) + 1
        return self.tried

    def hold(self, launcher: Launcher, keeper: Keeper, session: GuestSession) -> Machine:
        machine = Machine(launcher, keeper, session, lambda cause, detail: self._died(machine, cause, detail))
        self.machine = machine
        return machine

    def need_machine(self) -> Machine:
        if self.machine is None:
            raise MachineFailed(f"sandbox {self.name} has no machine")
        return self.machine

    def need_running(self) -> GuestSession:
        """The session of a running sandbox. Raises Conflict."""
        if self.state is not S.RUNNING or self.session is None:
            hints = {
                S.SUSPENDED: f"Go on with it: fcrun resume {self.name}",
                S.CREATED: f"fcrun start {self.name}",
                S.PAUSED: f"Let it go on: fcrun unpause {self.name}",
            }
            raise Conflict(f"sandbox {self.name} is {self.state}, not running", hint=hints.get(self.state, ""))
        return self.session

    def need_session(self) -> GuestSession:
        """The session of one that runs or is paused. Raises MachineFailed."""
        if self.session is None:
            raise MachineFailed(f"sandbox {self.name} has no machine")
        return self.session

    async def wake(self, session: GuestSession, identity: Identity | None = None) -> None:
        """Set the clock, stir fresh entropy in, then let the workload run."""
        await session.wake(time.time(), os.urandom(ENTROPY_BYTES), identity)

    def new_identity(self) -> Identity:
        """For a guest that was another's, or a template's, until now."""
        return Identity(self.hostname, os.urandom(16).hex())

    async def measure(self, answer: dict[str, Any], phases: Phases, main: Process) -> None:
        """Take down what the machine is made of and where the time went, for ``inspect``.

        ``answer``: the keeper's, with the parts of its ``restore`` (keys that end in ``_s``).
        """
        try:
            facts = await self.need_machine().request("stat")
        except PerdureError as error:
            _log.info("stat of %s: %s", self.id, error)  # it died in this moment: who watches it says so
            facts = {}
        self.figures = {
            "keeper_pid": facts.get("pid"),
            "firecracker_pid": facts.get("firecracker_pid"),
            "pager_pid": facts.get("pager_pid"),
            "main_pid": main.pid,
            "backend": facts.get("backend"),
            "emulated": self.rooms.ground.emulated,
            "phases": phases.times,
        } | {f"restore_{name}": value for name, value in answer.items() if name.endswith("_s")}

    async def until_ready(self, machine: Machine, session: GuestSession) -> None:
        """Its guest has dialled. Raises GuestFailed where that takes longer than it may, MachineFailed."""
        limit_s = self.record.spec.init_timeout_s or READY_TIMEOUT_S
        try:
            await machine.outlives(session.ready(limit_s))
        except TimeoutError:
            raise GuestFailed(
                f"the guest of sandbox {self.name} was not ready within {limit_s:g} s",
                hint="A machine under load may need longer: --init-timeout.",
            ) from None

    def find_main(self, session: GuestSession) -> Process:
        if (process := session.processes.get(self.main_id)) is None:
            raise MachineFailed(f"the guest of sandbox {self.name} does not know its main process")
        return process

    def follow(self, process: Process) -> None:
        """Carry the main process's output to the log, from where the log ends."""
        goes_on = {stream: process.skip_to(stream, self.log.positions[stream]) for stream in (STDOUT, STDERR)}
        if goes_on != self.log.positions:
            self.log.restart(goes_on[STDOUT], goes_on[STDERR])  # the guest was taken back to before what the log has
        self.main = MainProcess(process, self.log, self._main_exited)
        self.health.moved()  # it may have run before this node did

    def health_check(self) -> HealthCheck | None:
        return workload.health_check(self.record.spec, self.image.config)

    async def probe(self, command: list[str]) -> Process:
        """One look at its health, as a process beside the main one."""
        return await self.beside(ExecSpec(command=command))

    async def beside(self, wish: ExecSpec) -> Process:
        """A process beside the main one, in a machine that runs."""
        spec, session = self.record.spec, self.need_running()
        process = workload.side_process(wish, spec, self.image.config, self.hostname)
        return await session.exec(process, **fittings.bounds(spec))

    def discard(self, process: Process) -> None:
        """Nobody is at this process any more: end its input (not a terminal's), drop its output, forget its exit."""
        if not process.tty:
            process.close_stdin()
        self.spawn_task(_drain(process))

    async def let_answer(self) -> None:
        """Let the guest of a paused sandbox run, so that guestd answers; its workload stays frozen. Nothing where it
        is dead: who asks it something sees that."""
        try:
            machine = self.need_machine()
            if (await machine.request("stat")).get("state") == "paused":
                await machine.request("continue")
        except PerdureError as error:
            _log.info("%s does not go on: %s", self.id, error)

    async def end_machine(self, reason: PerdureError) -> None:
        """End what there is of a machine; who waits at its session gets ``reason``."""
        if self.main is not None:
            self.main.cancel()
        self.main = None
        if self.machine is not None:
            await self.machine.end()
        self.machine = None
        if self.session is not None:
            self.session.close(reason)
        self.session = None

    async def drop(self, digests: Iterable[str]) -> int:
        """Delete these of its snapshots, but those that another sandbox needs; the bytes freed."""

        def needed(digest: str) -> bool:
            return self.rooms.named_by_others(digest, self.id)

        unwanted = list(digests)
        freed = await asyncio.to_thread(self.rooms.store.remove, unwanted, unless=needed)
        if unwanted:
            self.rooms.drop_once_read(unwanted, self.id)
        return freed

    # -- how it ends --------------------------------------------------------------------------------------------------
    async def _main_exited(self, process: Process, status: int) -> None:
        async with self.moving:
            if self.state not in (S.RUNNING, S.PAUSED) or self.main is None or self.main.process is not process:
                return  # suspended in this moment: told again after the resume
            self.main = None
            if self.state is S.PAUSED:  # in this moment, or it was killed
                await self.let_answer()
            goes = self.record.spec.auto_remove and not mounts.writes_volumes(self.record.spec)
            detail = "" if goes else await syncing.sync(self)
            await self.end_machine(MachineFailed(f"sandbox {self.name} has exited"))
            self.exited("exited", self.stopping or "exit", detail, status)

    def exited(self, event: str, cause: str, detail: str, status: int | None) -> None:
        """Record the end, and remove the sandbox where that was asked for."""
        self.stopping = ""
        self.spawn_task(networking.withdraw(self))
        ran = {} if self.state is not S.STARTING else {"started": None}  # what it says there is of a former life
        self.happened(event, cause=cause, detail=detail, exit_status=status, finished=time.time(), **ran)
        self.emit("exited", cause=cause, detail=detail, exit_status=status)
        if self.is_to_go:
            self.spawn_task(self.remove())

    def _died(self, machine: Machine, cause: str, detail: str) -> None:
        self.spawn_task(self._bury(machine, cause, detail))

    async def _bury(self, machine: Machine, cause: str, detail: str) -> None:
        # an operation that is under way sees its request fail (``Machine.outlives``), and settles the state itself
        async with self.moving:
            if self.machine is machine and self.state in (S.RUNNING, S.PAUSED):
                _log.warning("machine of %s died: %s %s", self.id, cause, detail)
                await self.lost(cause, detail)

    async def lost(self, cause: str, detail: str) -> None:
        """The machine is gone by no wish of ours (or by a stop that could not wait)."""
        hint = "Go on from its last snapshot: fcrun resume" if self.record.snapshots else "Start it again: fcrun start"
        await self.end_machine(
            MachineFailed(f"the machine of sandbox {self.name} died ({cause})", hint=f"{hint} {self.name}", cause=cause)
        )
        self.exited("died", self.stopping or cause, detail, 137 if self.stopping else None)

    @abstractmethod
    async def awake(self, reason: WakeReason, progress: Progress = silent) -> None: ...

    @abstractmethod
    async def remove(self, *, force: bool = False) -> None: ...

    async def _answer_call(self, call: GuestCall) -> None:
        try:
            with self.activity.busy():
                await self.rooms.answer_call(self.record.calls, call)
        except StaleEpoch as error:
            self.spawn_task(self._fence(error))

    async def _fence(self, error: StaleEpoch) -> None:
        """Another machine owns the run now: this one must not go on."""
        async with self.moving:
            if self.state is S.RUNNING:
                await self.end_machine(error)
                self.exited("died", "stale-epoch", error.message, None)


async def _drain(process: Process) -> None:
    try:
        async for stream, offset, data in process.output():
            process.ack(stream, offset + len(data))
        await process.wait()
        process.release()
    except PerdureError:
        pass  # its machine is gone
