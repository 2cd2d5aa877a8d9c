"""The runs' ``Machines`` on this host's node: its synchronous client, called in threads."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec

from perdure.agent.bundle import sdk_files
from perdure.client.node import NodeClient, ensure_running
from perdure.errors import NotFound, Unavailable, Unsupported
from perdure.host import identity
from perdure.host.paths import Home
from perdure.model import (
    DEFAULT_DISK_MIB,
    DEFAULT_MEMORY_MIB,
    DEFAULT_VCPUS,
    CallsEndpoint,
    FileChange,
    Fork,
    LogPosition,
    NodeEvent,
    NodePlace,
    OutputPiece,
    SandboxInfo,
    SandboxSpec,
    SnapshotInfo,
    settle,
)
from perdure.runs.pack import Python
from perdure.runs.ports import MachinePlan, Sandbox
from perdure.server import imagepython
from perdure.server.packages import Packages, packed
from perdure.server.printed import printed

log = logging.getLogger(__name__)
Result = TypeVar("Result")

LABEL = "perdure.run"  # on a sandbox: the run that it is of
SDK = "/opt/perdure"
AGENTS = f"{SDK}/agents"
PACKAGES = f"{SDK}/packages"
THREADS = 32  # operations at once; each takes as long as the node does
PUSHES = 4  # at once, beside those: a store far away may be slow, and nobody's run waits for it
RECONNECT_S = 0.2
START_S = 15.0
TAIL_LINES = 200


class NodeMachines:
    """See ``runs.ports.Machines``. ``home``: that of the node, which others than this server may use, too."""

    def __init__(self, home: Home) -> None:
        settle(SandboxInfo, NodeEvent, SnapshotInfo)  # what the node's answers become in the threads below
        self._home = home
        self._node = NodeClient(home)
        self._place: NodePlace | None = None
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="node")
        self._pushing = ThreadPoolExecutor(PUSHES, thread_name_prefix="push")
        self._starting = threading.Lock()  # held while the node is being started
        self._closed = False
        self._asking = threading.Lock()
        self._pythons: dict[tuple[str, ...], Python] = {}  # by image, and all that there are
        self.packages: Packages | None = None  # put there before it is used

    @property
    def node(self) -> NodePlace:
        if self._place is None:
            self._place = identity.place(self._home)
        return self._place

    async def start(self, plan: MachinePlan, calls: CallsEndpoint) -> str:
        spec, files = _spec(plan, calls), _files(plan)

        def work(packages: Path | None = None) -> str:
            self._remove(plan.run_id)
            info = self._node.create(spec)
            if files:
                self._node.put_files(info.id, files)
            if packages is not None:
                with packed(packages, PACKAGES) as tar:
                    self._node.put_archive(info.id, "/", tar)
            return self._node.start(info.id).id

        if not plan.wheels:
            return await self._in_thread(work)
        if self.packages is None:
            raise Unsupported("this server has no folder for packages")
        async with self.packages.unpacked(plan.wheels) as folder:
            return await self._in_thread(lambda: work(folder))

    def python_of(self, image: str) -> Python:
        """Which Python an image has; asked in a machine of it, once while the node's images stay what they are."""
        key = (image, *sorted(f"{one.name} {one.digest}" for one in self._node.images()))
        with self._asking:  # the machine has one name
            if key not in self._pythons:
                self._pythons[key] = imagepython.ask(self._node, image)
            return self._pythons[key]

    async def inspect(self, sandbox_id: str) -> SandboxInfo:
        return await self._in_thread(lambda: self._node.get(sandbox_id))

    async def suspend(self, sandbox_id: str, position: LogPosition) -> SnapshotInfo:
        return await self._in_thread(lambda: self._node.suspend(sandbox_id, position=position))

    async def checkpoint(self, sandbox_id: str, position: LogPosition) -> SnapshotInfo:
        return await self._in_thread(lambda: self._node.checkpoint(sandbox_id, position=position))

    async def forget(self, sandbox_id: str, snapshot: str) -> None:
        await self._in_thread(lambda: self._node.store.remove(snapshot, sandbox=sandbox_id))

    async def resume(self, sandbox_id: str, snapshot: str, calls: CallsEndpoint) -> None:
        await self._in_thread(lambda: self._node.resume(sandbox_id, snapshot=snapshot, calls=calls))

    async def fork(self, run_id: str, snapshot: str, calls: CallsEndpoint) -> str:
        fork = Fork(name=f"run-{run_id}", labels={LABEL: run_id}, calls=calls)

        def work() -> str:
            self._remove(run_id)
            return self._node.fork(snapshot, [fork])[0].id

        return await self._in_thread(work)

    async def push(self, snapshot: str, store: str) -> None:
        await self._in_thread(lambda: self._node.store.push(snapshot, store), self._pushing)

    async def pull(self, snapshot: str, store: str) -> None:
        await self._in_thread(lambda: self._node.store.pull(store, snapshot, lazy=True))

    async def stop(self, sandbox_id: str, timeout_s: float) -> None:
        await self._in_thread(lambda: self._node.stop(sandbox_id, timeout_s=timeout_s))

    async def changes(self, sandbox_id: str) -> list[FileChange]:
        return await self._in_thread(lambda: self._node.detailed_changes(sandbox_id))

    async def file(self, sandbox_id: str, path: str) -> bytes:
        return await self._in_thread(lambda: self._node.changed_file(sandbox_id, path))

    async def output(self, sandbox_id: str, tail_bytes: int) -> bytes:
        def work() -> bytes:
            return b"".join(record.data for record in self._node.logs(sandbox_id, tail=TAIL_LINES))[-tail_bytes:]

        return await self._in_thread(work)

    def printed(
        self, sandbox_id: str, life: str = "", offset: int = 0, *, follow: bool = False, tail: int | None = None
    ) -> AsyncGenerator[OutputPiece]:
        offset = offset if life in ("", sandbox_id) else 0
        return printed(self._home.socket("fcrund"), sandbox_id, offset, follow=follow, tail=tail)

    async def remove(self, run_id: str) -> None:
        await self._in_thread(lambda: self._remove(run_id))

    def _remove(self, run_id: str) -> None:
        for info in self._node.list(label=f"{LABEL}={run_id}"):
            if info.spec.labels.get(LABEL) == run_id:  # a node of another version gives all
                try:
                    self._node.remove(info.id, force=True)
                except NotFound:
                    pass  # somebody was faster

    async def of_runs(self) -> list[Sandbox]:
        def work() -> list[Sandbox]:
            named = [(info.spec.labels.get(LABEL, ""), info) for info in self._node.list()]
            return [Sandbox(id=info.id, run_id=of, epoch=info.epoch, snapshots=info.held) for of, info in named if of]

        return await self._in_thread(work)

    async def discard(self, sandbox_id: str) -> None:
        await self._in_thread(lambda: self._node.remove(sandbox_id, force=True))

    async def events(self) -> AsyncIterator[NodeEvent]:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[NodeEvent] = asyncio.Queue()
        over = threading.Event()

        def put(event: NodeEvent) -> None:
            if not over.is_set():
                loop.call_soon_threadsafe(queue.put_nowait, event)

        # A daemon thread: nobody can wake it from its wait for the next event, so nobody waits for it.
        threading.Thread(target=self._listen, args=(put, over), name="node-events", daemon=True).start()
        try:
            while True:
                yield await queue.get()
        finally:
            over.set()

    def _listen(self, put: Callable[[NodeEvent], None], over: threading.Event) -> None:
        while not over.is_set():
            # What happens between this moment and the connection comes with it.
            now = time.time()
            put(NodeEvent(time=now, kind="node.connected"))
            try:
                for event in self._node.events(since=now):
                    put(event)
            except RuntimeError:
                return  # the loop, or the interpreter, has ended
            except Exception as error:  # whatever it is: without events no dead machine would be noticed
                log.info("no events from the node: %s", error)
            if over.wait(RECONNECT_S):
                return
            try:
                with self._starting:
                    if self._closed:
                        return
                    ensure_running(self._home)
            except RuntimeError:
                return  # the loop, or the interpreter, has ended
            except Exception as error:
                log.warning("the node does not start: %s", error)

    async def _in_thread(self, work: Callable[[], Result], threads: ThreadPoolExecutor | None = None) -> Result:
        def call() -> Result:
            try:
                return work()
            except OSError as error:
                raise Unavailable(f"the node does not answer: {error}") from error

        return await asyncio.get_running_loop().run_in_executor(threads or self._threads, call)

    def close(self) -> None:
        """Operations that are under way end by themselves, at the node. One that is being started answers then, so
        that whoever ends everything finds it."""
        self._closed = True
        if self._starting.acquire(timeout=START_S):
            self._starting.release()
        for threads in (self._threads, self._pushing):
            threads.shutdown(wait=False, cancel_futures=True)


def _spec(plan: MachinePlan, calls: CallsEndpoint) -> SandboxSpec:
    if plan.agent:
        file, _, function = plan.agent.partition(":")
        command = ["python3", "-m", "perdure.agent.run", f"{AGENTS}/{file}:{function}"]
        path = f"{SDK}:{PACKAGES}" if plan.wheels else SDK
        env = {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **plan.env}
    else:
        command, env = plan.command, plan.env
    return SandboxSpec(
        image=plan.image,
        command=command,
        entrypoint=[] if plan.agent else None,
        env=env,
        name=f"run-{plan.run_id}",
        labels={LABEL: plan.run_id},
        vcpus=plan.vcpus or DEFAULT_VCPUS,
        memory_mib=plan.memory_mib or DEFAULT_MEMORY_MIB,
        disk_mib=plan.disk_mib or DEFAULT_DISK_MIB,
        **msgspec.structs.asdict(plan.fittings),
        calls=calls,
    )


def _files(plan: MachinePlan) -> dict[str, bytes]:
    """What the agent needs in its sandbox, by absolute path."""
    if not plan.agent:
        return {}
    files = {f"{SDK}/{name}": content for name, content in sdk_files().items()}
    own = {**plan.modules, plan.agent.partition(":")[0]: plan.source}
    return {**files, **{f"{AGENTS}/{path}": content for path, content in own.items()}}
