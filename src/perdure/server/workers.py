"""The runs' ``Machines`` on the replay road: worker processes, forked from a warm one, which end with this server.

A worker has a folder of its own, ``HOME/workers/RUN``: the agent's files, ``work`` (where it runs: empty at each start,
as the function makes anew what it had made there), and what it and those before it ``printed``. It runs as the
server's user, with nothing between it and the rest of this machine (docs/threat-model.md).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import socket
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from perdure.errors import InvalidValue, MachineFailed, NotFound, Unavailable, Unsupported, VersionMismatch
from perdure.host.paths import Home
from perdure.model import (
    CallsEndpoint,
    FileChange,
    LogPosition,
    NodeEvent,
    OutputPiece,
    SandboxInfo,
    SandboxSpec,
    SandboxState,
    SnapshotInfo,
)
from perdure.runs.ports import MachinePlan, Sandbox
from perdure.server import packages
from perdure.server.packages import Packages
from perdure.server.transcripts import PART_BYTES, READ_BYTES, Transcript

log = logging.getLogger(__name__)

MESSAGE_MAX = 1 << 16
START_S = 30.0  # for the zygote's imports, on a machine that is busy
# What of the server's environment its workers see. Keys of providers stay here: ``ctx.chat`` goes through the server.
KEPT = frozenset(("PATH", "HOME", "USER", "LANG", "TZ", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH"))


@dataclass
class _Worker:
    run_id: str
    folder: Path
    printed: Transcript
    packages: Path | None = None  # the folder of those that it requires
    output: int = -1  # our end of the pipe that it prints to
    status: int | None = None
    cause: str = ""
    detail: str = ""
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Workers:
    """See ``runs.ports.Machines``. ``limit``: how many live at once; who starts then waits for one to end."""

    node = None  # they go on from their log, which is everywhere

    def __init__(self, home: Home, limit: int, packages: Packages | None = None) -> None:
        self._packages = packages
        self._folder = home.root / "workers"
        self._limit = asyncio.Semaphore(limit)
        self._workers: dict[str, _Worker] = {}
        self._printed: dict[str, Transcript] = {}  # by run
        self._zygote: _Zygote | None = None
        self._opening = asyncio.Lock()
        self._events: asyncio.Queue[NodeEvent] = asyncio.Queue()

    async def start(self, plan: MachinePlan, calls: CallsEndpoint) -> str:
        await self._end_all(plan.run_id)
        await self._limit.acquire()  # whoever gives up here has begun nothing; from now on it is begun as a whole
        begun = asyncio.ensure_future(self._begin(plan, calls))
        try:
            return await asyncio.shield(begun)
        except asyncio.CancelledError:
            await asyncio.wait({begun})
            raise

    async def _begin(self, plan: MachinePlan, calls: CallsEndpoint) -> str:
        worker_id = f"{plan.run_id}.{calls.epoch}"
        worker = _Worker(plan.run_id, self._folder / plan.run_id, self._transcript(plan.run_id, worker_id))
        try:
            worker.packages = await self._installed(plan)
            agent = await asyncio.to_thread(_furnish, worker.folder, plan)
            order = {
                "start": worker_id,
                "agent": agent,
                "folder": str(worker.folder / "work"),
                "env": {**environment(os.environ, worker.packages), **plan.env},
                "packages": str(worker.packages or ""),
                "calls": msgspec.to_builtins(calls),
                "silent": worker.printed.end > 0,  # what it would say of the past is told
            }
            zygote = await self._ensure_zygote()
            self._workers[worker_id] = worker
            worker.output = self._pipe(worker, zygote, order)
        except BaseException:
            self._workers.pop(worker_id, None)
            self._give_back(worker)
            raise
        return worker_id

    async def _installed(self, plan: MachinePlan) -> Path | None:
        """The folder of the packages that it requires. VersionMismatch: they are for another Python than ours."""
        if not plan.wheels:
            return None
        if self._packages is None:
            raise Unsupported("this server has no folder for packages")
        if plan.python is not None and not packages.own().takes(plan.python):
            message = f"its packages are for {plan.python.said}, and this server has {packages.own().said}"
            raise VersionMismatch(message, hint="It goes on with a server on that Python.")
        return await self._packages.take(plan.wheels)

    def _give_back(self, worker: _Worker) -> None:
        """Its place, and its packages."""
        self._limit.release()
        if worker.packages is not None and self._packages is not None:
            self._packages.give_back(worker.packages)

    def _pipe(self, worker: _Worker, zygote: _Zygote, order: dict[str, Any]) -> int:
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        try:
            zygote.tell(order, theirs)
        except OSError as error:
            os.close(ours)
            if isinstance(error, BlockingIOError | ConnectionError):
                raise Unavailable(f"no worker can be started now: {error}") from error
            raise InvalidValue(f"this run's environment is too large for a worker: {error}") from error
        finally:
            os.close(theirs)
        os.set_blocking(ours, False)
        asyncio.get_running_loop().add_reader(ours, self._read, worker)
        return ours

    def _read(self, worker: _Worker) -> bool:
        """One piece of what a worker prints; False: no more for now."""
        try:
            data = os.read(worker.output, READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._hang_up(worker)
            return False
        try:
            worker.printed.append(data)
        except OSError as error:  # a full disk: what it prints is not what a run is made of
            log.warning("what a worker of run %s printed is not kept: %s", worker.run_id, error)
        return True

    def _hang_up(self, worker: _Worker) -> None:
        if worker.output >= 0:
            asyncio.get_running_loop().remove_reader(worker.output)
            os.close(worker.output)
            worker.output = -1

    async def inspect(self, sandbox_id: str) -> SandboxInfo:
        worker = self._workers.get(sandbox_id)
        state = SandboxState.EXITED if worker is None or worker.ended.is_set() else SandboxState.RUNNING
        return SandboxInfo(
            id=sandbox_id,
            name=sandbox_id,
            spec=SandboxSpec(image=""),
            state=state,
            created=0.0,
            exit_status=worker.status if worker else None,
            cause=worker.cause if worker else "worker-lost",
            detail=worker.detail if worker else "the server that it belonged to has ended",
        )

    async def suspend(self, sandbox_id: str, position: LogPosition) -> SnapshotInfo | None:
        await self._end(sandbox_id)
        return None

    async def checkpoint(self, sandbox_id: str, position: LogPosition) -> SnapshotInfo:
        hint = "On the replay road every recorded call is one; leave this out."
        raise Unsupported("a worker has no snapshots: its log is all there is to keep", hint=hint)

    async def forget(self, sandbox_id: str, snapshot: str) -> None:
        pass

    async def resume(self, sandbox_id: str, snapshot: str, calls: CallsEndpoint) -> None:
        raise NotFound(f"a worker has no snapshot {snapshot}")

    async def changes(self, sandbox_id: str) -> list[FileChange]:
        raise Unsupported("a worker has no files of its own: what it made is made anew at each start")

    async def file(self, sandbox_id: str, path: str) -> bytes:
        raise Unsupported("a worker has no files of its own: what it made is made anew at each start")

    async def fork(self, run_id: str, snapshot: str, calls: CallsEndpoint) -> str:
        raise NotFound(f"a worker has no snapshot {snapshot}")

    async def push(self, snapshot: str, store: str) -> None:
        raise NotFound(f"a worker has no snapshot {snapshot}")

    async def pull(self, snapshot: str, store: str) -> None:
        raise NotFound(f"a worker has no snapshot {snapshot}")

    async def of_runs(self) -> list[Sandbox]:
        return []

    async def discard(self, sandbox_id: str) -> None:
        raise NotFound(f"no worker is left behind: {sandbox_id}")

    async def stop(self, sandbox_id: str, timeout_s: float) -> None:
        await self._end(sandbox_id)  # an agent hears by its calls that its run is to end, and has heard it

    async def output(self, sandbox_id: str, tail_bytes: int) -> bytes:
        found = [piece.data async for piece in self.printed(sandbox_id)]
        return b"".join(found)[-tail_bytes:]

    async def printed(
        self, sandbox_id: str, life: str = "", offset: int = 0, *, follow: bool = False, tail: int | None = None
    ) -> AsyncGenerator[OutputPiece]:
        """Of all workers that the run had since it was last removed."""
        worker, run_id = self._workers.get(sandbox_id), sandbox_id.partition(".")[0]
        transcript = self._transcript(run_id, "")
        if not transcript.life:
            raise NotFound(f"there is no worker {sandbox_id}")
        for _ in range(PART_BYTES // READ_BYTES):  # what it printed before it said that it has ended
            if worker is None or worker.output < 0 or not self._read(worker):
                break
        offset = transcript.tail(tail) if tail is not None else offset if life in ("", transcript.life) else 0
        while True:
            changed, is_over = transcript.changed, worker is None or worker.ended.is_set()
            while True:
                try:
                    offset, data = transcript.read(offset)
                except FileNotFoundError:
                    raise NotFound(f"worker {sandbox_id} was removed") from None
                if not data:
                    break
                yield OutputPiece(life=transcript.life, offset=offset, stream="stdout", at=offset, data=data)
                offset += len(data)
            if is_over or not follow:
                return
            await changed.wait()

    def _transcript(self, run_id: str, life: str) -> Transcript:
        found = self._printed.get(run_id)
        if found is None:
            found = Transcript(self._folder / run_id / "printed", life)
            if found.life:
                self._printed[run_id] = found
        return found

    async def remove(self, run_id: str) -> None:
        await self._end_all(run_id)
        # At once: whoever reads meanwhile would find a part of it, and the next worker would print where nothing is.
        self._printed.pop(run_id, None)
        shutil.rmtree(self._folder / run_id / "printed", ignore_errors=True)
        await asyncio.to_thread(shutil.rmtree, self._folder / run_id, ignore_errors=True)

    async def _end_all(self, run_id: str) -> None:
        for worker_id in [name for name, worker in self._workers.items() if worker.run_id == run_id]:
            await self._end(worker_id)
            self._workers.pop(worker_id, None)

    async def events(self) -> AsyncIterator[NodeEvent]:
        while True:
            yield await self._events.get()

    async def close(self) -> None:
        """End all workers. Their runs go on with the next server, from their logs."""
        if self._zygote is not None:
            await self._zygote.close()

    async def _end(self, worker_id: str) -> None:
        worker = self._workers.get(worker_id)
        if worker is None or worker.ended.is_set():
            return
        if self._zygote is not None:
            with suppress(ConnectionError):
                await self._zygote.tell_surely({"end": worker_id})
        await worker.ended.wait()

    # -- the zygote

    async def _ensure_zygote(self) -> _Zygote:
        async with self._opening:
            if self._zygote is None or self._zygote.over:
                self._zygote = await _Zygote.open(self._ended, self._all_ended)
            return self._zygote

    def _ended(self, worker_id: str, status: int, is_memory: bool) -> None:
        worker = self._workers.get(worker_id)
        if worker is None or worker.ended.is_set():
            return
        worker.status = status
        if status >= 0:
            worker.cause = "exit"
        elif is_memory:
            worker.cause, worker.detail = "out-of-memory", "the kernel ended it: this machine had no memory left"
        else:
            worker.cause, worker.detail = "worker-killed", f"signal {-status}"
        self._over(worker_id, worker)

    def _all_ended(self) -> None:
        """The zygote is gone, and all workers with it."""
        for worker_id, worker in list(self._workers.items()):
            if not worker.ended.is_set():
                worker.cause, worker.detail = "worker-lost", "the process that it was forked from has ended"
                self._over(worker_id, worker)

    def _over(self, worker_id: str, worker: _Worker) -> None:
        while worker.output >= 0 and self._read(worker):
            pass  # what is still in the pipe
        self._hang_up(worker)
        worker.ended.set()
        worker.printed.notify()
        self._give_back(worker)
        self._events.put_nowait(NodeEvent(time=0.0, kind="sandbox.exited", sandbox_id=worker_id))


class _Zygote:
    """The server's end of ``perdure.replay.zygote``."""

    def __init__(self, process: asyncio.subprocess.Process, link: socket.socket) -> None:
        self._process = process
        self._link = link
        self._reading: asyncio.Task[None] | None = None
        self.over = False

    @staticmethod
    async def open(ended: Any, all_ended: Any) -> _Zygote:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            number = theirs.fileno()
            argv = [sys.executable, "-P", "-m", "perdure.replay.zygote", str(number)]
            process = await asyncio.create_subprocess_exec(
                *argv, pass_fds=[number], env=environment(os.environ), stdin=asyncio.subprocess.DEVNULL
            )
        ours.setblocking(False)
        made = _Zygote(process, ours)
        try:
            async with asyncio.timeout(START_S):
                if not await asyncio.get_running_loop().sock_recv(ours, MESSAGE_MAX):
                    raise MachineFailed("the process that workers are forked from does not start")
        except BaseException:
            process.kill()
            await process.wait()
            ours.close()
            raise
        made._reading = asyncio.create_task(made._read(ended, all_ended), name="zygote")
        return made

    async def _read(self, ended: Any, all_ended: Any) -> None:
        loop = asyncio.get_running_loop()
        try:
            while data := await loop.sock_recv(self._link, MESSAGE_MAX):
                told = json.loads(data)
                ended(told["ended"], told["status"], told["out_of_memory"])
        except ConnectionError:
            pass
        finally:
            self.over = True
            self._link.close()
            all_ended()

    def tell(self, message: dict[str, Any], descriptor: int) -> None:
        socket.send_fds(self._link, [json.dumps(message).encode()], [descriptor])

    async def tell_surely(self, message: dict[str, Any]) -> None:
        if not self.over:
            await asyncio.get_running_loop().sock_sendall(self._link, json.dumps(message).encode())

    async def close(self) -> None:
        """It ends its workers when it hears nothing more of us."""
        if not self.over:
            self._link.shutdown(socket.SHUT_WR)
        await self._process.wait()
        if self._reading is not None:
            self._reading.cancel()
            with suppress(asyncio.CancelledError):
                await self._reading


def environment(ours: Mapping[str, str], packages: Path | None = None) -> dict[str, str]:
    """What of our environment a worker sees: no key of anybody. packages: also for what its steps start."""
    kept = {name: value for name, value in ours.items() if name in KEPT or name.startswith("LC_")}
    if packages is not None:
        kept["PYTHONPATH"] = ":".join([str(packages), *filter(None, [kept.get("PYTHONPATH")])])
    return kept


def _furnish(folder: Path, plan: MachinePlan) -> str:
    """An empty folder with the agent's files beside it; returns PATH:FUNCTION."""
    file, _, function = plan.agent.partition(":")
    for former in (folder / "agent", folder / "work"):
        shutil.rmtree(former, ignore_errors=True)
    for made in (folder.parent, folder, folder / "agent", folder / "work"):
        made.mkdir(parents=True, exist_ok=True, mode=0o700)  # what agents say is for nobody else
    for name, content in {**plan.modules, file: plan.source}.items():
        path = folder / "agent" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return f"{folder / 'agent' / file}:{function}"
